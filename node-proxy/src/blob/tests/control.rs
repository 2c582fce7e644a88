//! The tests' control: one blob of a cluster, with one permit at a time.

use super::*;

#[derive(Default)]
pub(super) struct Swarm {
    /// Whose finder reads, and under which permit.
    pub(super) permit: Option<(usize, u64)>,
    /// Blocks of a run, and the end of the one that is read.
    pub(super) run: u32,
    pub(super) run_end: u32,
    /// Permits that were granted, of which each has its own number.
    pub(super) granted: u64,
    pub(super) holders: Vec<Parent>,
    /// Who gave how much, as finders said.
    pub(super) fed: Vec<(NodeId, u64)>,
    pub(super) head: Option<(NodeId, u64)>,
    pub(super) hashes: Vec<(u32, Bytes)>,
    pub(super) sealed: Option<(NodeId, Hash, u64)>,
    pub(super) finders: Vec<(usize, NodeId, mpsc::Sender<News>)>,
}

impl Swarm {
    pub(super) fn say(&self, to: usize, news: News) {
        for (id, _, sender) in &self.finders {
            if *id == to {
                let _ = sender.try_send(news.clone());
            }
        }
    }

    pub(super) fn say_all(&self, except: &NodeId, news: &News) {
        for (_, node, sender) in &self.finders {
            if node != except {
                let _ = sender.try_send(news.clone());
            }
        }
    }

    pub(super) fn parents(&self) {
        for (_, node, sender) in &self.finders {
            let parents = self.holders.iter().filter(|parent| parent.node != *node).cloned().collect();
            let _ = sender.try_send(News::Parents(parents));
        }
    }

    pub(super) fn hold(&mut self, node: &NodeId, complete: bool) {
        let known = self.holders.iter_mut().find(|parent| parent.node == *node);
        match known {
            Some(parent) => parent.complete |= complete,
            None => {
                let addr = ParentAddr(([127, 0, 0, 1], 1).into());
                self.holders.push(Parent { node: node.clone(), addr, complete });
            }
        }
        self.parents();
    }

    pub(super) fn grant(&mut self) {
        if self.permit.is_none()
            && self.holders.iter().all(|holder| !holder.complete)
            && let Some((id, ..)) = self.finders.first()
        {
            self.granted += 1;
            let first = if self.run > 0 { self.run_end } else { 0 };
            let (id, grant) = (*id, Grant { id: self.granted, first, blocks: self.run });
            self.permit = Some((id, self.granted));
            self.run_end += self.run;
            self.say(id, News::Permit(grant));
        }
    }

    pub(super) fn heard(&mut self, cluster: &Cluster, node: &NodeId, tell: Tell) {
        match tell {
            Tell::Headers { size, media_type, .. } => {
                if self.head.is_none() {
                    self.head = Some((node.clone(), size));
                    self.say_all(node, &News::Head { author: node.clone(), size, media_type });
                }
            }
            Tell::Hashes { first, hashes } => {
                self.hashes.push((first, hashes.clone()));
                let over = self.run > 0 && first + (hashes.len() / 32) as u32 == self.run_end;
                self.say_all(node, &News::Hashes { first, hashes });
                if over {
                    self.permit = None;
                    self.grant();
                }
            }
            Tell::Trouble { why, .. } => {
                self.permit = None;
                self.finders.rotate_left(1);
                if why == OriginTrouble::NotFound {
                    self.finders.iter().for_each(|(id, ..)| self.say(*id, News::NotFound));
                } else {
                    self.grant();
                }
            }
            Tell::Progress { fed, .. } => {
                self.fed.extend(fed);
                self.hold(node, false);
            }
            Tell::Done { size, root, media_type } => {
                self.sealed = Some((node.clone(), root, size));
                // As control does: the flight may have ended before its last hash was told.
                self.say_all(node, &News::Sealed { author: node.clone(), root, size, media_type });
                self.hold(node, true);
            }
            Tell::Lied { node, .. } => cluster.lies.lock().push(node),
            Tell::Lost { .. } => {}
            Tell::Mismatch { author } => cluster.mismatches.lock().push(author),
        }
    }
}
