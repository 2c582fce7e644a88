use super::*;

fn node(number: usize) -> NodeId {
    format!("n{number}").parse().unwrap()
}

fn path(text: &str) -> Arc<[String]> {
    text.split('|').map(str::to_owned).collect()
}

fn facts(uploads: u32, location: &Arc<[String]>) -> Facts {
    Facts { addr: "10.0.0.1:5081".parse().unwrap(), uploads, slots: 0, location: Arc::clone(location) }
}

fn nowhere() -> Arc<[String]> {
    Arc::from([])
}

/// A finder that is nowhere in particular and would take anybody.
fn wish<'a>(node: &'a NodeId, current: &'a [ParentSaid], finders: usize) -> Wish<'a> {
    Wish { node, location: &[], avoid: &|_| false, current, mix: true, finders, lags: false }
}

/// Chooses for one finder, and notes what it was told.
fn choose(servers: &mut Servers, id: u64, wish: &Wish<'_>, dice: &mut Dice) -> Vec<ParentSaid> {
    let chosen = servers.choose(wish, dice);
    servers.told(FinderId(id), wish.current, &chosen);
    chosen
}

#[test]
fn names_the_near_and_idle_first() {
    let (here, there) = (path("a|b"), path("a|c"));
    let mut servers = Servers::default();
    servers.put(&node(0), facts(0, &there), Has::Whole, false);
    servers.put(&node(1), facts(3, &here), Has::Whole, false);
    servers.put(&node(2), facts(0, &here), Has::Part, false);
    servers.put(&node(3), facts(0, &here), Has::Whole, false);
    let chosen = choose(&mut servers, 1, &Wish { location: &here, ..wish(&node(9), &[], 1) }, &mut Dice::new(1));
    let order: Vec<&str> = chosen.iter().map(|p| p.node.as_str()).collect();
    assert_eq!(order, ["n3", "n2", "n1", "n0"]);
}

#[test]
fn never_names_the_asker_or_a_liar() {
    for seed in 0..50 {
        let mut servers = Servers::default();
        for number in 0..40 {
            servers.put(&node(number), facts(0, &nowhere()), Has::Part, false);
        }
        let liars: Vec<NodeId> = (0..20).map(node).collect();
        let avoid = |node: &NodeId| liars.contains(node);
        let chosen = choose(&mut servers, 1, &Wish { avoid: &avoid, ..wish(&node(30), &[], 1) }, &mut Dice::new(seed));
        assert!(chosen.len() >= 10 && chosen.len() <= MOST, "{}", chosen.len());
        assert!(chosen.iter().all(|p| p.node != node(30) && !liars.contains(&p.node)));
        let distinct: BTreeSet<&NodeId> = chosen.iter().map(|p| &p.node).collect();
        assert_eq!(distinct.len(), chosen.len());
    }
}

#[test]
fn keeps_who_was_named_and_adds_one_that_has_everything() {
    let mut servers = Servers::default();
    servers.put(&node(0), facts(200, &nowhere()), Has::Whole, false);
    for number in 1..100 {
        servers.put(&node(number), facts(0, &nowhere()), Has::Part, false);
    }
    let first = choose(&mut servers, 1, &wish(&node(200), &[], 1), &mut Dice::new(1));
    assert_eq!(first.len(), MOST);
    assert!(first.iter().any(|p| p.complete));
    let second = choose(&mut servers, 1, &wish(&node(200), &first, 1), &mut Dice::new(2));
    let set = |list: &[ParentSaid]| list.iter().map(|p| p.node.clone()).collect::<BTreeSet<_>>();
    assert_eq!(set(&first), set(&second));
}

#[test]
fn spreads_finders_over_the_holders() {
    let mut servers = Servers::default();
    for number in 0..100 {
        servers.put(&node(number), facts(0, &nowhere()), Has::Whole, false);
    }
    let mut dice = Dice::new(7);
    for finder in 0..100 {
        choose(&mut servers, finder, &wish(&node(1000 + finder as usize), &[], 100), &mut dice);
    }
    let named: Vec<usize> = servers.iter().map(|server| server.namers.len()).collect();
    let most = named.iter().max().unwrap();
    assert!(*most <= 24 && named.iter().all(|n| *n > 0), "16 on average, but one was named {most} times");
}

#[test]
fn equals_come_first_in_the_sets_of_different_finders() {
    let mut servers = Servers::default();
    for number in 0..16 {
        servers.put(&node(number), facts(0, &nowhere()), Has::Whole, false);
    }
    let mut dice = Dice::new(11);
    let mut first: HashMap<NodeId, usize> = HashMap::new();
    for finder in 0..320 {
        let set = choose(&mut servers, finder, &wish(&node(1000 + finder as usize), &[], 320), &mut dice);
        *first.entry(set[0].node.clone()).or_default() += 1;
    }
    assert_eq!(first.len(), 16);
    assert!(first.values().all(|count| *count <= 40), "20 on average: {first:?}");
}

#[test]
fn a_source_is_named_to_all_while_others_are_few_and_to_a_few_later() {
    let mut servers = Servers::default();
    servers.put(&node(0), facts(0, &nowhere()), Has::Part, true);
    let mut dice = Dice::new(3);
    let mut sets: Vec<Vec<ParentSaid>> = Vec::new();
    for finder in 0..200 {
        sets.push(choose(&mut servers, finder, &wish(&node(1000 + finder as usize), &[], 200), &mut dice));
    }
    assert!(sets.iter().all(|set| set.len() == 1 && set[0].node == node(0)));
    for number in 1..200 {
        servers.put(&node(number), facts(0, &nowhere()), Has::Part, false);
    }
    for (finder, set) in sets.iter_mut().enumerate() {
        *set = choose(&mut servers, finder as u64, &wish(&node(1000 + finder), &set.clone(), 200), &mut dice);
    }
    let told = sets.iter().filter(|set| set.iter().any(|p| p.node == node(0))).count();
    assert_eq!(told, SOURCE_QUOTA);
    assert!(sets.iter().all(|set| set.len() == MOST));
}

#[test]
fn who_came_early_is_not_in_everybodys_set_for_long() {
    let mut servers = Servers::default();
    let mut dice = Dice::new(5);
    let finders = 500;
    let mut sets: Vec<Vec<ParentSaid>> = vec![Vec::new(); finders];
    for (from, to) in [(0, 20), (20, 100), (100, 500)] {
        for number in from..to {
            servers.put(&node(number), facts(0, &nowhere()), Has::Part, false);
        }
        // A finder that has sixteen is looked at again only when somebody in its set is named too often.
        for _ in 0..2 {
            let again = servers.surplus(finders, |_| false, &mut dice);
            for (finder, set) in sets.iter_mut().enumerate() {
                if set.len() < MOST || again.contains(&FinderId(finder as u64)) {
                    let before = set.clone();
                    let me = node(finder);
                    let wish = wish(&me, &before, finders);
                    *set = choose(&mut servers, finder as u64, &wish, &mut dice);
                }
            }
        }
    }
    let most = servers.iter().map(|server| server.namers.len()).max().unwrap();
    assert!(most <= 2 * MOST, "one is named {most} times");
    let reached = reach(&sets, 0);
    assert!(reached > finders * 9 / 10, "{reached} of {finders} can be reached from the first");
}

#[test]
fn who_has_nothing_yet_is_named_from_the_start_so_that_nobody_hangs_on_the_first_who_has_something() {
    let mut servers = Servers::default();
    servers.put(&node(0), facts(0, &nowhere()), Has::Part, true);
    for number in 1..=100 {
        servers.put(&node(number), facts(0, &nowhere()), Has::Nothing, false);
    }
    let mut dice = Dice::new(9);
    let mut sets: Vec<Vec<ParentSaid>> = vec![Vec::new(); 101];
    let named = |servers: &Servers, number: usize| servers.get(&node(number)).unwrap().namers.len();
    for (finder, set) in sets.iter_mut().enumerate().skip(1) {
        *set = choose(&mut servers, finder as u64, &wish(&node(finder), &[], 101), &mut dice);
        assert_eq!(set.len(), MOST);
    }
    assert_eq!(named(&servers, 0), SOURCE_QUOTA);
    for number in 1..=8 {
        assert!(
            servers.put(&node(number), facts(0, &nowhere()), Has::Part, false),
            "it has something for the first time"
        );
        assert!(!servers.put(&node(number), facts(1, &nowhere()), Has::Part, false));
    }
    for (finder, set) in sets.iter_mut().enumerate().skip(1) {
        *set = choose(&mut servers, finder as u64, &wish(&node(finder), &set.clone(), 101), &mut dice);
        assert!(set.len() == MOST && set.iter().all(|parent| parent.node != node(finder)));
    }
    let most = (1..=100).map(|number| named(&servers, number)).max().unwrap();
    assert!(most <= MOST + MOST / 2, "one is named {most} times");
}

#[test]
fn nobody_is_named_while_nobody_has_anything() {
    let mut servers = Servers::default();
    for number in 0..40 {
        servers.put(&node(number), facts(0, &nowhere()), Has::Nothing, false);
    }
    assert!(servers.choose(&wish(&node(50), &[], 41), &mut Dice::new(1)).is_empty());
}

/// How many nodes are reached along the sets, backwards: whom a block of this node can come to.
fn reach(sets: &[Vec<ParentSaid>], from: usize) -> usize {
    let mut seen = BTreeSet::from([node(from)]);
    let mut edge = vec![node(from)];
    while let Some(next) = edge.pop() {
        for (child, set) in sets.iter().enumerate() {
            if set.iter().any(|p| p.node == next) && seen.insert(node(child)) {
                edge.push(node(child));
            }
        }
    }
    seen.len()
}

#[test]
fn who_lags_is_named_to_those_who_lag() {
    let mut servers = Servers::default();
    for number in 0..100 {
        servers.put(&node(number), facts(0, &nowhere()), Has::Part, false);
    }
    let number_of = |node: &NodeId| node.as_str()[1..].parse::<usize>().unwrap();
    let lags = |node: &NodeId| number_of(node) < 30;
    let mut dice = Dice::new(1);
    let mut sets: Vec<Vec<ParentSaid>> =
        (0..100).map(|at| choose(&mut servers, at as u64, &wish(&node(at), &[], 100), &mut dice)).collect();
    servers.weigh(|_| Some(10));
    assert!(!servers.lags(&node(0)), "they all have just begun");
    servers.weigh(|node| Some(if lags(node) { 40 } else { 160 }));
    assert!(servers.lags(&node(29)) && !servers.lags(&node(30)));
    for _ in 0..10 {
        let again = servers.surplus(100, |id| id.0 < 30, &mut dice);
        for id in again {
            let at = id.0 as usize;
            let (me, before) = (node(at), std::mem::take(&mut sets[at]));
            let wish = Wish { lags: at < 30, ..wish(&me, &before, 100) };
            sets[at] = choose(&mut servers, id.0, &wish, &mut dice);
        }
    }
    for (at, set) in sets.iter().enumerate().skip(30) {
        let drag = set.iter().filter(|parent| lags(&parent.node)).count();
        assert!(drag <= DRAG && set.len() >= MOST - 2, "{at}: {drag} of {} lag", set.len());
    }
    servers.weigh(|_| None);
    assert!(!servers.lags(&node(29)), "nobody fetches any more");
    assert!(sets[..30].iter().any(|set| set.iter().any(|parent| lags(&parent.node))), "they still know each other");
}
