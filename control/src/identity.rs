//! Who is who: the certificate authority of the nodes, join tokens and API tokens.
//!
//! Will own the keys and what is issued with them; [`crate::store`] will keep tokens (as hashes) and the audit log. Until
//! then a node is who its address is: control admits nodes by network (`allow` in the configuration), and the author of
//! a piece list is a node's session.
