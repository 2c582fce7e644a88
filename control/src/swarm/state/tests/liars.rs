//! Who lied, and who is told of whom then.

use super::*;

#[test]
fn i1_after_a_mismatch_nobody_is_named_who_said_the_same() {
    let mut bench = Bench::with(&["a", "b", "c", "d"]);
    bench.hold("a", 1, 1);
    bench.hold("b", 1, 1);
    let (c, d) = (bench.find("c"), bench.find("d"));
    bench.take(d);
    bench.tell(c, Tell::Mismatch { author: node("b") });
    assert!(bench.take(d).is_empty(), "b is not the author of what was told");
    bench.tell(c, Tell::Mismatch { author: node("a") });
    let said = bench.take(d);
    assert_eq!(last_parents(&said), Some(vec![]));
    assert!(said.iter().any(|say| matches!(say, Say::Permit(_))));
    assert_eq!(bench.state.counts().holdings, 0);
}

#[test]
fn a_liar_is_named_no_more_to_whom_it_lied() {
    let mut bench = Bench::with(&["a", "b", "c"]);
    bench.hold("a", 1, 1);
    let (b, c) = (bench.find("b"), bench.find("c"));
    bench.take(b);
    bench.take(c);
    for _ in 0..3 {
        bench.tell(b, Tell::Lied { node: node("a"), block: 0 });
    }
    let said = bench.take(b);
    assert_eq!(last_parents(&said), Some(vec![]));
    assert!(said.iter().any(|say| matches!(say, Say::Permit(_))), "it has nobody else: {said:?}");
    bench.wait(ms(200));
    assert_eq!(last_parents(&bench.take(c)), None, "c keeps its parent");
    assert_eq!(bench.notices.iter().filter(|n| matches!(n, Notice::ParentLied { .. })).count(), 1);
}

#[test]
fn i6_a_permit_goes_on_when_its_holder_is_named_to_nobody_and_nobody_else_asks_the_origin() {
    let mut bench = Bench::with(&["a", "b", "c", "liar"]);
    let reading = bench.find("liar");
    let permit = bench.permit(reading).unwrap();
    bench.headers(reading, permit);
    let others = ["a", "b", "c"].map(|name| bench.find(name));
    for finder in &others[..2] {
        bench.tell(*finder, Tell::Lied { node: node("liar"), block: 0 });
    }
    assert!(bench.take(reading).contains(&Say::Stop(Stop::Revoked)));
    // The first one had nobody else to wait for; that was before a second one said the same.
    assert!(bench.take(others[0]).contains(&Say::Stop(Stop::NotFound)));
    let said = [others[1], others[2]].map(|finder| bench.take(finder));
    assert_eq!(said.iter().flatten().filter(|say| matches!(say, Say::Permit(_))).count(), 1, "{said:?}");
    assert!(!said.iter().flatten().any(|say| matches!(say, Say::Stop(_))), "{said:?}");
    // Nor when it asks again, for this blob or another one, unless it is alone: then it goes to the origin by itself.
    bench.apply(Event::Ended { finder: reading, clean: false });
    let again = bench.find("liar");
    assert_eq!(bench.permit(again), None);
    let alone = bench.ask("liar", want(2));
    assert!(bench.take(alone).contains(&Say::Stop(Stop::NotFound)));
}

#[test]
fn nothing_is_kept_of_a_complaint_about_a_node_that_is_not_there() {
    let mut bench = Bench::with(&["a", "b"]);
    let reading = bench.find("a");
    for at in 0..100 {
        bench.tell(reading, Tell::Lied { node: node(&format!("nobody-{at}")), block: 0 });
    }
    assert!(!bench.notices.iter().any(|notice| matches!(notice, Notice::ParentLied { .. })), "{:?}", bench.notices);
    bench.tell(reading, Tell::Lied { node: node("b"), block: 0 });
    assert_eq!(bench.notices.iter().filter(|notice| matches!(notice, Notice::ParentLied { .. })).count(), 1);
}

#[test]
fn i6_a_permit_that_waits_for_a_node_that_is_named_to_nobody_goes_on_at_once() {
    let mut bench = Bench::with(&["a", "b", "c", "liar"]);
    let reading = bench.find("liar");
    let permit = bench.permit(reading).unwrap();
    bench.headers(reading, permit);
    let others = ["a", "b", "c"].map(|name| bench.find(name));
    bench.apply(Event::Ended { finder: reading, clean: false });
    for finder in &others[..2] {
        bench.tell(*finder, Tell::Lied { node: node("liar"), block: 0 });
    }
    let said = [others[1], others[2]].map(|finder| bench.take(finder));
    assert_eq!(said.iter().flatten().filter(|say| matches!(say, Say::Permit(_))).count(), 1, "{said:?}");
    assert!(!said.iter().flatten().any(|say| matches!(say, Say::Stop(_))), "{said:?}");
}

#[test]
fn a_liar_is_named_no_more_for_other_blobs_either_and_after_two_complaints_to_nobody() {
    let mut bench = Bench::with(&["a", "b", "c", "liar"]);
    for blob in 1..=4 {
        bench.hold("liar", blob, blob);
    }
    let named = |bench: &mut Bench, who: &str, blob: u8| {
        let finder = bench.ask(who, want(blob));
        let said = bench.take(finder);
        (finder, last_parents(&said).is_some_and(|set| names(&set).contains(&"liar")))
    };
    let lie = || Tell::Lied { node: node("liar"), block: 0 };
    let (first, was_named) = named(&mut bench, "a", 1);
    assert!(was_named);
    bench.tell(first, lie());
    assert!(!named(&mut bench, "a", 2).1);
    // One complaint may itself be a lie.
    let (second, was_named) = named(&mut bench, "b", 2);
    assert!(was_named);
    bench.tell(second, lie());
    assert!(!named(&mut bench, "c", 3).1);
    // Ten minutes later it counts no more.
    bench.now += At::from_secs(601);
    assert!(named(&mut bench, "c", 4).1);
}

#[test]
fn i1_an_author_that_lied_is_not_believed_about_that_blob_and_gets_no_permit_for_it() {
    let mut bench = Bench::with(&["a", "b", "liar"]);
    let reading = bench.find("liar");
    let permit = bench.permit(reading).unwrap();
    bench.headers(reading, permit);
    bench.hashes(reading, 0, &[9, 9, 9, 9]);
    let follower = bench.find("a");
    assert!(
        bench.take(follower).iter().any(|say| matches!(say, Say::Head { author, .. } if author.as_str() == "liar"))
    );
    bench.tell(follower, Tell::Mismatch { author: node("liar") });
    bench.hold("liar", 1, 9);
    let said = bench.take(follower);
    assert!(last_parents(&said).is_none_or(|set| set.is_empty()), "{said:?}");
    let next = bench.find("b");
    let said = bench.take(next);
    assert!(!said.iter().any(|say| matches!(say, Say::Sealed { .. } | Say::Head { .. })), "{said:?}");
    assert!(said.iter().any(|say| matches!(say, Say::Permit(_))), "another reads the origin: {said:?}");
    let again = bench.find("liar");
    assert!(bench.permit(again).is_none());
    bench.wait(ms(700_000));
    bench.hold("liar", 1, 9);
    assert_eq!(bench.state.held_by(&node("liar")), 1, "for ten minutes");
}

#[test]
fn i1_a_blob_announced_while_its_origin_is_read_does_not_void_the_list_that_is_followed() {
    let mut bench = Bench::with(&["a", "b", "liar"]);
    let reading = bench.find("a");
    let permit = bench.permit(reading).unwrap();
    bench.headers(reading, permit);
    bench.hashes(reading, 0, &[1, 2]);
    let follower = bench.find("b");
    bench.take(follower);
    bench.hold("liar", 1, 9);
    bench.hashes(reading, 2, &[3, 4]);
    let said = bench.take(follower);
    assert!(!said.iter().any(|say| matches!(say, Say::Sealed { .. })), "{said:?}");
    let more = Say::Hashes { first: 2, hashes: hash_run(&[3, 4]), proof: None };
    assert!(said.contains(&more), "{said:?}");
}

#[test]
fn who_was_refused_is_believed_when_those_who_said_otherwise_turned_out_to_lie() {
    let mut bench = Bench::with(&["a", "b", "liar"]);
    bench.hold("liar", 1, 9);
    bench.hold("a", 1, 1);
    assert_eq!(bench.state.held_by(&node("a")), 0);
    let finder = bench.find("b");
    assert_eq!(names(&last_parents(&bench.take(finder)).unwrap()), ["liar"]);
    bench.tell(finder, Tell::Mismatch { author: node("liar") });
    bench.wait(ms(200));
    let said = bench.take(finder);
    assert_eq!(names(&last_parents(&said).unwrap()), ["a"], "{said:?}");
    assert!(
        said.iter().any(
            |say| matches!(say, Say::Sealed { author, meta, .. } if author.as_str() == "a" && meta.root == [1; 32])
        )
    );
}

#[test]
fn of_what_contradicts_so_much_is_remembered_and_of_each_node_its_last_word() {
    let mut contested = Contested::default();
    let key = (cluster("east"), digest(1));
    for root in 0..40 {
        contested.insert(key.clone(), node(&format!("n{root}")), fact(1, root), Signature::new());
    }
    contested.insert(key.clone(), node("n1"), fact(1, 0), Signature::new());
    let agreed = |contested: &mut Contested, root: u8| -> Vec<NodeId> {
        contested.take_agreed(|_, meta| meta.root == [root; 32]).into_iter().map(|(node, ..)| node).collect()
    };
    assert!(agreed(&mut contested, 0).is_empty(), "the blob has not changed");
    contested.touch(&key);
    assert!(agreed(&mut contested, 1).is_empty(), "it says otherwise now");
    contested.touch(&key);
    assert_eq!(agreed(&mut contested, 0), [node("n0"), node("n1")]);
    contested.touch(&key);
    assert!(agreed(&mut contested, 39).is_empty(), "too many things were said");
    contested.forget(&node("n7"), None);
    contested.touch(&key);
    assert!(agreed(&mut contested, 7).is_empty());
}
