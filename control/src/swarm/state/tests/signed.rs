//! Signatures: kept as they came, told with the certificate that they are checked by, and what happens when a finder does not believe one.

use super::super::super::event::Proof;
use super::*;

fn by(name: &str, number: u8) -> Signature {
    format!("{name} signs {number}").into()
}

fn certificate(name: &str, issued: u64) -> Arc<Certificate> {
    Arc::new(Certificate { der: format!("{name} at {issued}").into(), issued })
}

impl Bench {
    fn certified(&mut self, name: &str, issued: u64) {
        self.apply(Event::Certified { node: node(name), certificate: certificate(name, issued) });
    }

    /// Nodes that have certificates.
    fn members(nodes: &[&str]) -> Self {
        let mut bench = Self::with(nodes);
        nodes.iter().for_each(|name| bench.certified(name, 1));
        bench
    }

    fn signed_headers(&mut self, finder: FinderId, name: &str) {
        let permit = self.permit(finder).unwrap();
        let signature = by(name, 0);
        self.tell(finder, Tell::Headers { permit, size: 4 * BLOCK, media_type: "text/plain".into(), signature });
    }

    fn signed_hash(&mut self, finder: FinderId, name: &str, block: u8) {
        let hashes = vec![block; 32].into();
        self.tell(finder, Tell::Hashes { first: block.into(), hashes, signature: by(name, block) });
    }

    fn signed_hold(&mut self, name: &str, root: u8) {
        let held = vec![(digest(1), meta(root), by(name, root))];
        self.announce(name, Announced { held, ..Announced::default() });
    }
}

fn part(name: &str, block: u8) -> Say {
    let proof = Some(Proof { author: node(name), signature: by(name, block) });
    Say::Hashes { first: block.into(), hashes: vec![block; 32].into(), proof }
}

/// What is said of the list, and by what it is checked.
fn words(said: Vec<Say>) -> Vec<Say> {
    let of_list =
        |say: &Say| matches!(say, Say::Author { .. } | Say::Head { .. } | Say::Hashes { .. } | Say::Sealed { .. });
    said.into_iter().filter(of_list).collect()
}

fn author(name: &str, issued: u64) -> Say {
    Say::Author { node: node(name), certificate: certificate(name, issued) }
}

fn sealed(name: &str, root: u8) -> Say {
    Say::Sealed { author: node(name), meta: fact(1, root), signature: by(name, root) }
}

#[test]
fn parts_are_told_as_each_writer_signed_them_with_its_certificate_also_to_who_comes_late() {
    let mut bench = Bench::members(&["a", "b", "c", "d"]);
    let (a, b) = (bench.find("a"), bench.find("b"));
    bench.signed_headers(a, "a");
    bench.signed_hash(a, "a", 0);
    bench.signed_hash(a, "a", 1);
    // Said twice: nothing new, and not kept.
    bench.signed_hash(a, "a", 1);
    let head = Say::Head { author: node("a"), size: 4 * BLOCK, media_type: "text/plain".into(), signature: by("a", 0) };
    assert_eq!(words(bench.take(b))[..3], [author("a", 1), head.clone(), part("a", 0)]);
    bench.apply(Event::Ended { finder: a, clean: true });
    bench.apply(Event::Left { node: node("a") });
    bench.signed_headers(b, "b");
    bench.signed_hash(b, "b", 2);
    let c = bench.find("c");
    let all = [author("a", 1), head, part("a", 0), part("a", 1), author("b", 1), part("b", 2)];
    assert_eq!(words(bench.take(c)), all, "the first writer is gone");
    bench.signed_hash(b, "b", 3);
    assert_eq!(words(bench.take(c)), [part("b", 3)]);
}

#[test]
fn the_latest_certificate_is_told_once() {
    let mut bench = Bench::members(&["a", "b"]);
    let (a, b) = (bench.find("a"), bench.find("b"));
    bench.signed_headers(a, "a");
    bench.certified("a", 5);
    bench.certified("a", 3);
    bench.take(b);
    bench.signed_hash(a, "a", 0);
    bench.signed_hash(a, "a", 1);
    assert_eq!(words(bench.take(b)), [author("a", 5), part("a", 0), part("a", 1)]);
}

#[test]
fn a_holder_that_is_still_there_vouches_when_the_author_is_gone() {
    let mut bench = Bench::members(&["a", "b", "c", "d"]);
    bench.hold("a", 1, 1);
    bench.signed_hold("b", 1);
    bench.signed_hold("c", 1);
    let d = bench.find("d");
    // What is signed goes before what is not.
    assert_eq!(words(bench.take(d)), [author("b", 1), sealed("b", 1)]);
    bench.apply(Event::Ended { finder: d, clean: true });
    bench.apply(Event::Left { node: node("b") });
    let d = bench.find("d");
    assert_eq!(words(bench.take(d)), [author("c", 1), sealed("c", 1)]);
}

#[test]
fn who_does_not_believe_a_signature_is_told_of_another_author_and_then_reads_the_origin() {
    let mut bench = Bench::members(&["a", "b", "c"]);
    bench.signed_hold("a", 1);
    bench.signed_hold("b", 1);
    let c = bench.find("c");
    assert_eq!(words(bench.take(c)), [author("a", 1), sealed("a", 1)]);
    bench.tell(c, Tell::Unproven { author: node("a") });
    let said = bench.take(c);
    assert!(!said.iter().any(|say| matches!(say, Say::Permit(_))));
    assert_eq!(words(said), [author("b", 1), sealed("b", 1)]);
    bench.tell(c, Tell::Unproven { author: node("b") });
    let said = bench.take(c);
    assert!(said.iter().any(|say| matches!(say, Say::Permit(_))), "nobody else vouches: {said:?}");
    assert_eq!(words(said), []);
    // Others are told as before.
    let other = bench.ask("c", want(2));
    assert!(bench.take(other).iter().any(|say| matches!(say, Say::Permit(_))));
    bench.apply(Event::Registered {
        member: Member {
            node: node("e"),
            cluster: Some(cluster("east")),
            addr: "10.0.0.2:1".parse().unwrap(),
            location: Vec::new(),
            seed: false,
            orders: true,
        },
        restarted: false,
    });
    let e = bench.find("e");
    assert_eq!(words(bench.take(e)), [author("a", 1), sealed("a", 1)]);
}

#[test]
fn a_growing_list_whose_head_is_not_believed_is_told_no_more_and_the_sealed_one_is() {
    let mut bench = Bench::members(&["a", "b"]);
    let (a, b) = (bench.find("a"), bench.find("b"));
    bench.signed_headers(a, "a");
    bench.take(b);
    bench.tell(b, Tell::Unproven { author: node("a") });
    bench.signed_hash(a, "a", 0);
    assert_eq!(words(bench.take(b)), []);
    // Of many refusals no more is made than of a few: it is told of nobody.
    for name in ["v", "w", "x", "y", "z"] {
        bench.tell(b, Tell::Unproven { author: node(name) });
    }
    bench.tell(a, Tell::Done(meta(1), by("a", 1)));
    assert_eq!(words(bench.take(b)), []);
    assert!(bench.state.counts().permits == 1, "it reads by itself");
}

#[test]
fn a_moved_node_vouches_in_its_new_cluster_only_when_it_has_signed_for_it() {
    let mut bench = Bench::members(&["a", "b", "c"]);
    bench.signed_hold("a", 1);
    for name in ["a", "b"] {
        bench.apply(Event::Moved { node: node(name), cluster: Some(cluster("west")) });
    }
    let b = bench.find("b");
    let unsigned = |said: &[Say]| matches!(said, [.., Say::Sealed { signature, .. }] if signature.is_empty());
    assert!(unsigned(&words(bench.take(b))));
    bench.tell(b, Tell::Unproven { author: node("a") });
    bench.take(b);
    bench.certified("a", 2);
    bench.signed_hold("a", 1);
    // The finder has refused it; another is told.
    bench.apply(Event::Ended { finder: b, clean: true });
    let b = bench.find("b");
    assert_eq!(words(bench.take(b)), [author("a", 2), sealed("a", 1)]);
}

#[test]
fn of_many_holders_the_signatures_of_some_are_kept_and_of_those_that_are_left_one_counts() {
    let names: Vec<String> = (0..40).map(|number| format!("n{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut bench = Bench::members(&names);
    names[..39].iter().for_each(|name| bench.signed_hold(name, 1));
    for name in &names[..10] {
        bench.apply(Event::Left { node: node(name) });
    }
    let last = bench.find("n39");
    let said = words(bench.take(last));
    assert!(
        matches!(&said[..], [Say::Author { .. }, Say::Sealed { signature, .. }] if !signature.is_empty()),
        "{said:?}"
    );
}
