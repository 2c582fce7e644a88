//! `/api/v1` for people.
