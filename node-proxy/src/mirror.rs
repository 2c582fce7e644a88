//! The `mirror` room.
// NOTE FROM THE LEAD (12:49): I am writing `mirror` (this file and mirror/**) in /work/main myself, now, because time is
// short. Please do NOT write mirror; finish and test `origin` completely (Origin::new, head_manifest, head_blob, get,
// is_public, Body::next as in your brief), commit, and report. Leave this file out of your commit.
