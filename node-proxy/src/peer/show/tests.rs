use super::*;

const EVERY: Duration = Duration::from_millis(50);

fn layout(blocks: u32) -> Layout {
    Layout::of(u64::from(blocks) * (256 << 10)).unwrap()
}

fn set(layout: Layout, blocks: impl IntoIterator<Item = BlockIndex>) -> BlockSet {
    let mut set = BlockSet::empty(layout);
    blocks.into_iter().for_each(|block| assert!(set.insert(block)));
    set
}

fn shown(show: &mut Show, child: Child, have: &BlockSet, now: Instant) -> Vec<BlockIndex> {
    show.show(child, have, None, now).iter().flat_map(Run::blocks).collect()
}

#[test]
fn growth_is_shown_at_once_when_it_is_much_and_else_when_it_is_time() {
    let (layout, now) = (layout(100), Instant::now());
    let mut show = Show::new(layout, EVERY);
    let child = show.join(now);
    assert_eq!(shown(&mut show, child, &set(layout, [3, 5]), now), [3, 5]);
    assert_eq!(show.due(child), None);
    assert_eq!(shown(&mut show, child, &set(layout, [3, 5, 6]), now), []);
    assert_eq!(show.due(child), Some(now + EVERY));
    assert_eq!(shown(&mut show, child, &set(layout, [3, 5, 6]), now + EVERY), [6]);
    let much = shown(&mut show, child, &set(layout, 3..23), now + EVERY);
    assert_eq!(much, [4].into_iter().chain(7..23).collect::<Vec<_>>());
}
