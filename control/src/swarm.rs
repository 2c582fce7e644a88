//! Who holds what: holders, parents and permits.
