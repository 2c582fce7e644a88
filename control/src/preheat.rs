//! Bringing an image to a cluster before anybody pulls it.
//!
//! Will own jobs and the pure rules of their states; [`crate::store`] will keep the jobs, and the work reaches seeds and
//! nodes as fetch orders on their sessions (`FetchOrder` in `shoal.control.v1`). A preheat fetch is an ordinary flight of
//! a node: it has the same permits and the same checks as a pull.
