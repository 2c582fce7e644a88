//! What a parent shows to which child of what it has, and when: a pure machine over the children of one blob. The time is
//! passed in.
//!
//! Blocks that came here from peers are shown to every child. Blocks that this node has first hand (it read them from the
//! origin, or it is one of few that hold the blob whole) are where a crowd's bytes come from, and its uplink should carry each of
//! them once before it carries one twice. So with several children such a block is *lent*: shown to one child alone, a few at a time, until that child has
//! got it and passes it on itself.
//!
//! What always holds:
//! - A block is shown only when the parent has it, to each child at most once, and nothing is taken back.
//! - As long as first copies wait, what came from peers is shown a second later, when they have had time to pass it on, or three
//!   when somebody waits for a block: a first copy that is behind others' second ones holds up everybody.
//! - A child that is alone is shown everything; one that comes late, after a while, all that was given before it came.
//! - A block on loan that the child does not ask for in time, or gets no byte of in time, is free for others again, quick ones first:
//!   otherwise it goes from one slow child to the next, and is what everybody waits for in the end.
//! - A quick child without work here does not wait for one that is far behind: what that one has not asked for comes back.
//! - Once every first-hand block was given, or when nobody gets what it asked for, everything is shown. Whenever the uplink has
//!   nothing to do, blocks that others got are lent too, more and more of them to a child that takes none. So whatever the
//!   children do, each is shown every block in the end.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use shoal_base::few::Few;
use shoal_proto::frame::Run;
use shoal_proto::{BlockIndex, BlockSet, Layout};

/// One `Open` of the blob, until its end. Never used again for that blob.
pub type Child = u64;

/// So much growth is shown at once, without waiting for the next time.
const MUCH_GROWTH: u32 = 16;
/// A child that waits for nothing here is told of growth so many times sooner: then it is latency that counts.
const IDLE_SOONER: u32 = 10;
/// A busy child looks for what others do not take so many times later: its own blocks are news enough.
const BUSY_LATER: u32 = 4;
/// Blocks on loan to a child at least: one is being sent, one is queued.
const LEAST_LOAN: u32 = 2;
/// More are lent than that if the child takes them sooner than this, up to two pieces, which is what a child queues.
const LOAN_AHEAD: Duration = Duration::from_millis(250);
/// A child that was lent blocks and asks for none of them for so long does not need them from here. Longer than a hash takes
/// to reach it.
const UNASKED: Duration = Duration::from_millis(500);
/// A first copy that a child did not ask for in so long goes back, although it takes others: it may be outside its window, and the last
/// that everybody waits for.
const NOT_YET: Duration = Duration::from_secs(2);
/// A child that asks so often in a row for something else passes over what it was lent: that is outside its window, or the child is
/// too slow to come to it.
const PASSED_OVER: u32 = 2;
/// A child is quick if what it asked for furthest is at most so many pieces behind what any other asked for. How soon it takes a
/// block says nothing: that is a matter of what else the uplink carries.
const QUICK: u32 = 8;
/// A child that got nothing of what it asked for so long does not hold up others (I8 gives a parent as long).
const STALLED: Duration = Duration::from_secs(2);
/// A child that comes late is shown after so long what others got before: until then it gets that from them, if it knows them, and
/// the uplink is not spent on second copies. Short beside the time that a reader waits for its first byte (I8).
const EARLIER_AFTER: Duration = Duration::from_secs(1);
/// A source leaves blocks that came from peers to those for so long: it is not where anybody gets them first.
const LEFT_TO_PEERS: Duration = Duration::from_secs(1);
/// And for so long while it has an uplink's work to do: some child may know nobody else who has them, and waits for its first byte (I8).
const HELD_BACK: Duration = Duration::from_secs(3);
/// Nobody waits for a block for so long: the uplink has room for second copies. Some round trips, so that a want is on its way
/// when there is one.
const QUIET: Duration = Duration::from_millis(200);
/// A crowd is large if it has more than so many children to each that holds the blob whole.
const MANY: u32 = 4;
/// So much is sent to a child in one go, by its pace: well below [`STALLED`].
const AT_ONCE: Duration = Duration::from_millis(500);
/// Weight of the newest measurement of a child's pace.
const NEWEST: f64 = 0.3;

/// What is known when a child opens the blob.
#[derive(Debug, Clone, Copy, Default)]
pub struct Opening {
    /// So many nodes hold it whole, as the child knows; 0: it does not say.
    pub holders: u32,
    /// This node is one of them.
    pub whole: bool,
}

/// What one child was shown.
#[derive(Debug)]
struct Shown {
    told: BlockSet,
    /// When it was last told something.
    at: Option<Instant>,
    /// When to look again, if there is something that it was not told.
    due: Option<Instant>,
    /// On loan to it, or asked by it, and not given.
    loan: BlockSet,
    /// Given to it by this upload.
    given: BlockSet,
    /// Given to others before it came, and not shown to it yet.
    earlier: BlockSet,
    joined: Instant,
    /// Blocks that were ever lent to it.
    lent: u32,
    /// Blocks on loan that it did not ask for yet, and since when, in that order.
    unasked: VecDeque<(BlockIndex, Instant)>,
    /// How often in a row it asked for others while it had such.
    passed: u32,
    /// Loans in a row of which it took nothing: it needs others, and is shown more at once until it takes some.
    refused: u32,
    /// Blocks that it asked for and did not get yet.
    wanted: u32,
    /// When it last asked, got a block, or was lent one while it had none.
    moved: Instant,
    /// Seconds a block, smoothed; 0 until measured.
    pace: f64,
    /// The end of what it asked for furthest.
    reach: BlockIndex,
}

/// The children of one blob.
#[derive(Debug)]
pub struct Show {
    layout: Layout,
    every: Duration,
    children: Few<Child, Shown>,
    next: Child,
    /// So many hold the blob whole, as the last child to come knew.
    holders: u32,
    /// This node held the blob whole when the first of these children came.
    was_whole: bool,
    /// Given to some child.
    given: BlockSet,
    /// On loan to some child.
    lent: BlockSet,
    /// Was on loan to a child that made nothing of it.
    returned: BlockSet,
    /// What a source has of its peers.
    second_hand: SecondHand,
    /// Blocks that all children asked for and did not get yet.
    wanted: u32,
    /// When `wanted` last became 0, or a block last went out.
    moved: Option<Instant>,
}

/// Blocks of a source that came from peers.
#[derive(Debug)]
struct SecondHand {
    seen: BlockSet,
    fresh: Young,
    young: Young,
}

/// Blocks that were seen less than some time ago.
#[derive(Debug)]
struct Young {
    blocks: BlockSet,
    /// In that order.
    since: VecDeque<(BlockIndex, Instant)>,
}

impl Young {
    fn none(layout: Layout) -> Self {
        Self { blocks: BlockSet::empty(layout), since: VecDeque::new() }
    }

    fn note(&mut self, new: &BlockSet, age: Duration, now: Instant) {
        for block in blocks(new) {
            self.blocks.insert(block);
            self.since.push_back((block, now));
        }
        let old = self.since.partition_point(|(_, since)| *since + age <= now);
        for (block, _) in self.since.drain(..old) {
            self.blocks.remove(block);
        }
    }
}

impl SecondHand {
    fn none(layout: Layout) -> Self {
        Self { seen: BlockSet::empty(layout), fresh: Young::none(layout), young: Young::none(layout) }
    }

    fn note(&mut self, all: &BlockSet, now: Instant) {
        let new = all.minus(&self.seen);
        self.fresh.note(&new, LEFT_TO_PEERS, now);
        self.young.note(&new, HELD_BACK, now);
        blocks(&new).for_each(|block| {
            self.seen.insert(block);
        });
    }
}

impl Show {
    /// A blob without children. A child is shown growth at most once in `every`, or each 16 blocks.
    pub fn new(layout: Layout, every: Duration) -> Self {
        let none = || BlockSet::empty(layout);
        let (given, lent, returned) = (none(), none(), none());
        let second_hand = SecondHand::none(layout);
        Self {
            layout,
            every,
            children: Few::new(),
            next: 0,
            holders: 0,
            was_whole: false,
            given,
            lent,
            returned,
            second_hand,
            wanted: 0,
            moved: None,
        }
    }

    /// Whether to lend although nothing was read from the origin here: this node held the blob whole when the first of these
    /// children came, and they are many beside those that hold it. Shown everything, each child would take nearly all of it from
    /// here; lent, they take it from each other. With others that hold it too, a small crowd is quicker with everything in sight.
    pub fn lends_all(&self) -> bool {
        self.was_whole && (self.holders <= 1 || self.children.len() as u32 > MANY * self.holders)
    }

    /// A child opened the blob.
    pub fn join(&mut self, opening: Opening, now: Instant) -> Child {
        if opening.holders > 0 {
            self.holders = opening.holders;
        }
        if self.children.is_empty() {
            self.was_whole = opening.whole;
        }
        let child = self.next;
        self.next += 1;
        let none = || BlockSet::empty(self.layout);
        let shown = Shown {
            told: none(),
            at: None,
            due: None,
            loan: none(),
            given: none(),
            earlier: self.given.clone(),
            joined: now,
            lent: 0,
            unasked: VecDeque::new(),
            passed: 0,
            refused: 0,
            wanted: 0,
            moved: now,
            pace: 0.0,
            reach: 0,
        };
        self.children.insert(child, shown);
        self.moved.get_or_insert(now);
        child
    }

    /// The child is gone. If it is `broken`, what it got may be gone with it, and counts as not given. True: others may be shown
    /// more now.
    pub fn leave(&mut self, child: Child, broken: bool, now: Instant) -> bool {
        let Some(shown) = self.children.remove(child) else { return false };
        blocks(&shown.loan).for_each(|block| {
            self.lent.remove(block);
        });
        if broken {
            blocks(&shown.given).for_each(|block| {
                self.given.remove(block);
            });
        }
        self.unwant(shown.wanted, now);
        !shown.loan.is_empty() || self.children.len() == 1
    }

    /// What to show the child now, in order; none when it is not the time, or there is nothing new. `have` is what the parent
    /// has; `first_hand` what of it is lent rather than shown to everybody, `None` for a blob that came from peers.
    pub fn show(&mut self, child: Child, have: &BlockSet, first_hand: Option<&BlockSet>, now: Instant) -> Vec<Run> {
        let secret = first_hand.filter(|_| self.children.len() > 1).map(|own| own.minus(&self.given));
        let all_given = secret.as_ref().is_none_or(BlockSet::is_empty) && have.is_full();
        let quiet = now >= self.quiet_at();
        let stalled = quiet && self.wanted > 0;
        let secret = secret.filter(|_| !all_given && !stalled);
        if let Some(own) = first_hand.filter(|_| secret.is_some()) {
            self.call_in(now);
            self.second_hand.note(&have.minus(own), now);
        }
        // Only a source has turns; every other parent shows all, and is looked at for each block and child.
        let before = secret.as_ref().map_or(0, |secret| self.before(child, &secret.minus(&self.lent)));
        // One that has nothing on loan and waits for nothing would take something: nobody has offered it any.
        let moves = |shown: &Shown| now < shown.moved + STALLED || shown.loan.is_empty();
        let takes = |shown: &Shown| shown.refused == 0 && !shown.given.is_empty() && moves(shown);
        let best = secret
            .as_ref()
            .and_then(|_| self.children.values().filter(|shown| takes(shown)).map(|shown| shown.reach).max());
        let near = QUICK * self.layout.piece_blocks(0).end;
        let is_quick = |shown: &Shown| best.is_none_or(|best| takes(shown) && shown.reach + near >= best);
        let quick = secret.is_some() && self.children.get(child).is_some_and(is_quick);
        if quick && let Some(secret) = &secret {
            self.free_for(child, secret, is_quick, now);
        }
        let every = self.every;
        let Some(shown) = self.children.get_mut(child) else { return Vec::new() };
        if secret.is_none() && !have.exceeds(&shown.told) {
            shown.due = None;
            return Vec::new();
        }
        let new = have.minus(&shown.told);
        let (Some(secret), Some(own)) = (secret, first_hand) else {
            return shown.tell(new, every, now).runs();
        };
        let mut open = new.minus(own);
        if !quiet && !secret.is_empty() {
            let SecondHand { fresh, young, .. } = &self.second_hand;
            open = open.minus(if self.wanted > 0 { &young.blocks } else { &fresh.blocks });
        }
        let earlier_at = shown.joined + EARLIER_AFTER;
        if now >= earlier_at {
            // This may be the only parent that it can ask for its first block.
            blocks(&shown.earlier).filter(|block| new.contains(*block) && !secret.contains(*block)).for_each(|block| {
                open.insert(block);
            });
        }
        let mut telling = shown.tell(open, every, now);
        shown.earlier = shown.earlier.minus(&telling);
        let mut first = secret.minus(&self.lent).minus(&shown.told);
        let all = first.len();
        let once_more = first.minus(&first.minus(&self.returned));
        // What one passed over goes to those who take what they are lent, and not to the next that is too slow for it.
        if !quick && !quiet {
            first = first.minus(&once_more);
        }
        let mut room = shown.room(self.layout);
        let mut second = BlockSet::empty(self.layout);
        if quiet {
            second = new.minus(&self.lent).minus(&shown.told).minus(&first);
            room = room.saturating_mul(1 << (2 * shown.refused).min(16));
        } else {
            // Who got least is first. Otherwise the fastest would get all, and its uplink would have to carry all of it to all.
            room = room.min(all.saturating_sub(before).max(if quick { once_more.len() } else { 0 }));
        }
        if room > 0 && shown.loan.is_empty() {
            shown.moved = now;
        }
        let fresh = first.minus(&once_more);
        let again = first.minus(&fresh);
        for block in blocks(&again).chain(blocks(&fresh)).chain(blocks(&second)).take(room as usize) {
            self.lent.insert(block);
            shown.loan.insert(block);
            shown.unasked.push_back((block, now));
            shown.lent += 1;
            shown.told.insert(block);
            telling.insert(block);
        }
        if have.len() > shown.told.len() {
            // Loans of others come back, and the uplink falls quiet, at times that nobody else tells this child.
            let poll = now + if shown.wanted == 0 { every } else { every * BUSY_LATER };
            shown.due = Some(shown.due.map_or(poll, |due| due.min(poll)));
        }
        if !shown.earlier.is_empty() && now < earlier_at {
            shown.due = Some(shown.due.map_or(earlier_at, |due| due.min(earlier_at)));
        }
        telling.runs()
    }

    /// The child asked for blocks.
    pub fn wanted(&mut self, child: Child, run: Run, now: Instant) {
        let Some(shown) = self.children.get_mut(child) else { return };
        shown.wanted += run.count;
        shown.moved = now;
        shown.reach = shown.reach.max(run.blocks().end);
        let lent = shown.unasked.len();
        shown.unasked.retain(|(block, _)| !run.blocks().contains(block));
        if shown.unasked.len() < lent {
            (shown.passed, shown.refused) = (0, 0);
        } else if lent > 0 {
            shown.passed += 1;
        } else {
            // It takes what it is told: it may have its turn again, though not at once.
            shown.refused = shown.refused.saturating_sub(1);
        }
        self.wanted += run.count;
        for block in run.blocks() {
            shown.loan.insert(block);
            self.lent.insert(block);
        }
    }

    /// A block was sent to the child. True: others may be shown more now.
    pub fn gave(&mut self, child: Child, block: BlockIndex, now: Instant) -> bool {
        self.gave_run(child, Run { first: block, count: 1 }, now)
    }

    /// Blocks were sent to the child, one right after the other. True: others may be shown more now.
    pub fn gave_run(&mut self, child: Child, run: Run, now: Instant) -> bool {
        let Some(shown) = self.children.get_mut(child) else { return false };
        let took = now.saturating_duration_since(shown.moved).as_secs_f64() / f64::from(run.count);
        let mut asked = 0;
        for block in run.blocks() {
            shown.pace = if shown.pace == 0.0 { took } else { shown.pace * (1.0 - NEWEST) + took * NEWEST };
            shown.loan.remove(block);
            shown.given.insert(block);
            self.lent.remove(block);
            asked += 1;
        }
        shown.moved = now;
        let asked = shown.wanted.min(asked);
        shown.wanted -= asked;
        self.moved = Some(now);
        self.unwant(asked, now);
        let before = self.given.len();
        for block in run.blocks() {
            self.given.insert(block);
        }
        self.given.len() > before && self.given.is_full()
    }

    /// How many blocks to send the child in one go: what it takes in half a second, so that it is seen to live while it takes
    /// them. At least 1.
    pub fn at_once(&self, child: Child) -> u32 {
        let pace = self.children.get(child).map_or(0.0, |shown| shown.pace);
        if pace == 0.0 { LEAST_LOAN } else { (AT_ONCE.as_secs_f64() / pace).clamp(1.0, f64::from(u32::MAX)) as u32 }
    }

    /// When to look again although nothing has changed: [`Show::show`] may then have something for the child.
    pub fn due(&self, child: Child) -> Option<Instant> {
        self.children.get(child)?.due
    }

    /// How many children take one of these first copies before this one does.
    fn before(&self, child: Child, first: &BlockSet) -> u32 {
        let turn = |id: Child, shown: &Shown| (shown.refused, shown.lent, id);
        let Some(own) = self.children.get(child).map(|shown| turn(child, shown)) else { return 0 };
        let takes = |shown: &Shown| shown.room(self.layout) > 0 && first.exceeds(&shown.told);
        self.children.iter().filter(|(id, shown)| turn(*id, shown) < own && takes(shown)).count() as u32
    }

    /// When second copies may be shown, if nothing is asked until then.
    fn quiet_at(&self) -> Instant {
        let moved = self.moved.expect("there is a child");
        moved + if self.wanted == 0 { QUIET } else { STALLED }
    }

    fn unwant(&mut self, blocks: u32, now: Instant) {
        self.wanted -= blocks;
        if blocks > 0 && self.wanted == 0 {
            self.moved = Some(now);
        }
    }

    /// A quick child that has nothing to ask here for is not kept waiting by one that is far behind it: what that one has not asked
    /// for in a while comes back. In the end of a blob everybody waits for such blocks.
    fn free_for(&mut self, child: Child, secret: &BlockSet, is_quick: impl Fn(&Shown) -> bool, now: Instant) {
        let Some(shown) = self.children.get(child).filter(|shown| shown.wanted == 0 && shown.loan.is_empty()) else {
            return;
        };
        let would_take = secret.minus(&shown.told);
        if would_take.is_empty() || would_take.exceeds(&self.lent) {
            return;
        }
        for behind in self.children.values_mut().filter(|other| !other.unasked.is_empty() && !is_quick(other)) {
            let back = |block, since| now >= since + QUIET && would_take.contains(block);
            if behind.gives_back(&mut self.lent, &mut self.returned, back) {
                behind.refused += 1;
            }
        }
    }

    /// Takes back what was lent to children that make nothing of it.
    fn call_in(&mut self, now: Instant) {
        for shown in self.children.values_mut().filter(|shown| !shown.loan.is_empty()) {
            let patience = if shown.wanted == 0 { UNASKED } else { STALLED };
            if now >= shown.moved + patience {
                blocks(&shown.loan).for_each(|block| {
                    self.lent.remove(block);
                    self.returned.insert(block);
                });
                shown.loan = BlockSet::empty(self.layout);
                shown.unasked.clear();
                shown.passed = 0;
                shown.refused += 1;
            } else if shown.passed >= PASSED_OVER {
                if shown.gives_back(&mut self.lent, &mut self.returned, |_, since| now >= since + UNASKED) {
                    shown.passed = 0;
                    shown.refused += 1;
                }
            } else if shown.unasked.front().is_some_and(|(_, since)| now >= *since + NOT_YET) {
                let back = |block, since| now >= since + NOT_YET && !self.given.contains(block);
                shown.gives_back(&mut self.lent, &mut self.returned, back);
            }
        }
    }
}

impl Shown {
    /// What of the new to tell it now: all or nothing.
    fn tell(&mut self, new: BlockSet, every: Duration, now: Instant) -> BlockSet {
        let wait = if self.wanted == 0 { every / IDLE_SOONER } else { every };
        let due = self.at.map_or(now, |at| at + wait);
        self.due = None;
        if new.is_empty() {
            return new;
        }
        if now < due && new.len() < MUCH_GROWTH {
            self.due = Some(due);
            return new.minus(&new);
        }
        blocks(&new).for_each(|block| {
            self.told.insert(block);
        });
        self.at = Some(now);
        new
    }

    /// Takes back those blocks on loan that it has not asked for and that `which` names, by when they were lent. True: there were some.
    fn gives_back(
        &mut self,
        lent: &mut BlockSet,
        returned: &mut BlockSet,
        which: impl Fn(BlockIndex, Instant) -> bool,
    ) -> bool {
        let before = self.unasked.len();
        self.unasked.retain(|(block, since)| {
            let back = which(*block, *since);
            if back {
                lent.remove(*block);
                returned.insert(*block);
                self.loan.remove(*block);
            }
            !back
        });
        self.unasked.len() < before
    }

    /// How many more blocks may be lent to it now.
    fn room(&self, layout: Layout) -> u32 {
        let target = self.target(layout);
        if self.loan.len() <= target / 2 { target - self.loan.len() } else { 0 }
    }

    /// How many blocks should be on loan to it.
    fn target(&self, layout: Layout) -> u32 {
        let most = (2 * layout.piece_size() / layout.block_size()) as u32;
        let soon = if self.pace == 0.0 { 0.0 } else { LOAN_AHEAD.as_secs_f64() / self.pace };
        (soon.min(f64::from(most)) as u32).max(LEAST_LOAN)
    }
}

fn blocks(set: &BlockSet) -> impl Iterator<Item = BlockIndex> + use<> {
    set.runs().into_iter().flat_map(|run| run.blocks())
}

#[cfg(test)]
mod tests;
