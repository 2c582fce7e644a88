//! Whoever is between an author and its readers, and whatever it makes of what the author signed.

use shoal_proto::PieceList;

use super::super::identity::tests::{Authority, DAY};
use super::*;

const BLOCK: u64 = 256 << 10;
const SIZE: u64 = 4 * BLOCK;

/// A node with a certificate.
struct Node {
    name: &'static str,
    identity: Arc<Identity>,
    _state: tempfile::TempDir,
}

impl Node {
    fn of(authority: &Authority, name: &'static str, cluster: &str, life: Duration) -> Self {
        let state = tempfile::tempdir().unwrap();
        let identity = Arc::new(Identity::open(state.path()).unwrap());
        let id = format!("spiffe://shoal/cluster/{cluster}/node/{name}");
        identity.take(authority.certify(&identity.request().unwrap(), &id, life)).unwrap();
        Self { name, identity, _state: state }
    }

    fn member(authority: &Authority, name: &'static str) -> Self {
        Self::of(authority, name, "c1", DAY)
    }

    /// Signs as if it were that node of that cluster.
    fn signs_as(&self, name: &str, cluster: &str) -> Signs {
        Signs { identity: self.identity.clone(), node: name.parse().unwrap(), cluster: cluster.parse().unwrap() }
    }

    fn signs(&self) -> Signs {
        self.signs_as(self.name, "c1")
    }
}

fn digest(number: u8) -> Digest {
    Digest::from_bytes([number; 32])
}

/// A node that follows the list of blob 1, and what it counts.
struct Reader {
    judge: Judge,
    identity: Arc<Identity>,
    metrics: Metrics,
    _node: Node,
}

impl Reader {
    fn new(authority: &Authority) -> Self {
        let (node, metrics) = (Node::member(authority, "reader"), Metrics::default());
        let authors = Arc::new(Authors::new(node.identity.clone(), metrics.clone()));
        let judge = Judge::new(Some(authors), "c1".parse().unwrap(), digest(1), None);
        Self { judge, identity: node.identity.clone(), metrics, _node: node }
    }

    fn hear(&mut self, message: &Hear) -> Verdict {
        self.judge.hear(message, SystemTime::now())
    }

    fn meets(&mut self, name: &str, signs: &Signs) {
        assert_eq!(self.hear(&author(name, signs)), Verdict::Nothing);
    }

    fn refused(&self, why: Why) -> u64 {
        self.metrics.unproven_lists(why)
    }
}

fn author(name: &str, signs: &Signs) -> Hear {
    Hear::Author(wire::Author { node_id: name.into(), certificate: signs.certificate() })
}

fn head(signs: &Signs, of: u8) -> wire::ListHead {
    let (author, media_type) = (signs.node.to_string(), "a/b".to_owned());
    let signature = signs.sign(digest(of), SIZE, Says::Head { media_type: &media_type });
    wire::ListHead { author, size: SIZE, media_type, signature }
}

fn part(signs: &Signs, of: u8, first_block: u32) -> wire::ListPart {
    let hashes = vec![7; 64];
    let signature = signs.sign(digest(of), SIZE, Says::Part { first: first_block, hashes: &hashes });
    wire::ListPart { first_block, hashes, author: signs.node.to_string(), signature }
}

fn root() -> Hash {
    let mut list = PieceList::new(Layout::of(SIZE).unwrap());
    list.set_run(0, &[7; 128]).unwrap();
    list.root().unwrap()
}

fn sealed(signs: &Signs, of: u8) -> wire::Sealed {
    let holding = Holding { digest: digest(of), size: SIZE, root: root(), media_type: "a/b".into() };
    let wire::Held { size, root, media_type, signature, .. } = held(holding, Some(signs));
    wire::Sealed { author: signs.node.to_string(), root, size, media_type, signature }
}

fn refused(name: &str) -> Verdict {
    Verdict::Refused { author: name.parse().unwrap(), first: true }
}

fn refused_again(name: &str) -> Verdict {
    Verdict::Refused { author: name.parse().unwrap(), first: false }
}

#[test]
fn what_an_author_signed_is_believed_of_several_authors_too() {
    let authority = Authority::new();
    let (one, other) = (Node::member(&authority, "one").signs(), Node::member(&authority, "other").signs());
    let mut reader = Reader::new(&authority);
    reader.meets("one", &one);
    reader.meets("other", &other);
    let words = [
        Hear::Head(head(&one, 1)),
        Hear::List(part(&one, 1, 0)),
        Hear::List(part(&other, 1, 2)),
        Hear::Sealed(sealed(&other, 1)),
    ];
    for word in words {
        assert_eq!(reader.hear(&word), Verdict::Believed, "{word:?}");
    }
}

#[test]
fn i1_a_relay_that_changes_anything_is_not_believed() {
    let authority = Authority::new();
    let node = Node::member(&authority, "one");
    let signs = node.signs();
    let (good_head, good_part, good_seal) = (head(&signs, 1), part(&signs, 1, 0), sealed(&signs, 1));
    let mut bad = vec![
        Hear::Head(wire::ListHead { size: SIZE - 1, ..good_head.clone() }),
        Hear::Head(wire::ListHead { media_type: "a/c".into(), ..good_head.clone() }),
        Hear::Head(wire::ListHead { signature: good_part.signature.clone(), ..good_head.clone() }),
        Hear::Sealed(wire::Sealed { size: SIZE - 1, ..good_seal.clone() }),
        Hear::Sealed(wire::Sealed { root: vec![9; 32], ..good_seal.clone() }),
        Hear::Sealed(wire::Sealed { media_type: String::new(), ..good_seal.clone() }),
        // Said of another blob.
        Hear::Head(head(&signs, 2)),
        Hear::Sealed(sealed(&signs, 2)),
    ];
    let mut hashes = good_part.hashes.clone();
    hashes[63] ^= 1;
    let parts = [
        wire::ListPart { hashes, ..good_part.clone() },
        wire::ListPart { hashes: vec![7; 32], ..good_part.clone() },
        // Another place, another blob, a head for a part.
        wire::ListPart { first_block: 1, ..good_part.clone() },
        part(&signs, 2, 0),
        wire::ListPart { signature: good_head.signature.clone(), ..good_part.clone() },
    ];
    bad.extend(parts.map(Hear::List));
    for word in bad {
        let mut reader = Reader::new(&authority);
        reader.meets("one", &signs);
        assert_eq!(reader.hear(&Hear::Head(good_head.clone())), Verdict::Believed);
        assert_eq!(reader.hear(&word), refused("one"), "{word:?}");
        assert_eq!(reader.hear(&word), refused_again("one"), "control is told once of each author");
        assert_eq!(reader.refused(Why::Signature), 2);
    }
    // Whoever was refused is believed again when what it says is its own.
    let mut reader = Reader::new(&authority);
    reader.meets("one", &signs);
    assert_eq!(reader.hear(&Hear::Sealed(sealed(&signs, 2))), refused("one"));
    assert_eq!(reader.hear(&Hear::List(good_part.clone())), Verdict::Nothing, "no head was believed");
    for word in [Hear::Head(good_head), Hear::List(good_part), Hear::Sealed(good_seal)] {
        assert_eq!(reader.hear(&word), Verdict::Believed);
    }
}

#[test]
fn i1_nothing_unsigned_and_nobody_else_s_certificate_counts() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let one = Node::member(&ours, "one");
    let signs = one.signs();
    // Without a signature, and without a certificate to check it by.
    for unsigned in [
        Hear::Head(wire::ListHead { signature: Vec::new(), ..head(&signs, 1) }),
        Hear::Sealed(wire::Sealed { signature: Vec::new(), ..sealed(&signs, 1) }),
    ] {
        let mut reader = Reader::new(&ours);
        reader.meets("one", &signs);
        assert_eq!(reader.hear(&unsigned), refused("one"));
        assert_eq!(reader.refused(Why::Unsigned), 1);
    }
    let mut reader = Reader::new(&ours);
    assert_eq!(reader.hear(&Hear::Head(head(&signs, 1))), refused("one"));
    reader.meets("one", &signs);
    assert_eq!(reader.hear(&Hear::Head(head(&signs, 1))), Verdict::Believed);
    let unsigned = wire::ListPart { signature: Vec::new(), author: String::new(), ..part(&signs, 1, 0) };
    assert_eq!(reader.hear(&Hear::List(unsigned)), refused("unnamed"));
    assert_eq!(reader.refused(Why::Unsigned), 2);
    // Another node in its name, with its own certificate or with that of the one it poses as.
    let other = Node::member(&ours, "other").signs_as("one", "c1");
    for (shown, why) in [(&other, Why::Author), (&signs, Why::Signature)] {
        let mut reader = Reader::new(&ours);
        reader.meets("one", shown);
        assert_eq!(reader.hear(&Hear::Sealed(sealed(&other, 1))), refused("one"));
        assert_eq!(reader.refused(why), 1);
    }
    // Of another cluster, whatever it signs for; and of another authority.
    let abroad = Node::of(&ours, "abroad", "c2", DAY);
    for signs in [abroad.signs_as("abroad", "c1"), abroad.signs_as("abroad", "c2")] {
        let mut reader = Reader::new(&ours);
        reader.meets("abroad", &signs);
        assert_eq!(reader.hear(&Hear::Sealed(sealed(&signs, 1))), refused("abroad"));
        assert_eq!(reader.refused(Why::Cluster), 1);
    }
    let foreign = Node::member(&theirs, "foreign").signs();
    let mut reader = Reader::new(&ours);
    reader.meets("foreign", &foreign);
    assert_eq!(reader.hear(&Hear::Head(head(&foreign, 1))), refused("foreign"));
    assert_eq!(reader.refused(Why::Foreign), 1);
    // What a member signed for another cluster before it came to this one.
    let moved = one.signs_as("one", "c2");
    let mut reader = Reader::new(&ours);
    reader.meets("one", &signs);
    assert_eq!(reader.hear(&Hear::Sealed(sealed(&moved, 1))), refused("one"));
    assert_eq!(reader.refused(Why::Signature), 1);
}

#[test]
fn i1_a_certificate_that_is_over_or_void_counts_no_more_although_it_was_seen() {
    let authority = Authority::new();
    let node = Node::member(&authority, "one");
    let signs = node.signs();
    let mut reader = Reader::new(&authority);
    reader.meets("one", &signs);
    assert_eq!(reader.hear(&Hear::Head(head(&signs, 1))), Verdict::Believed);
    let word = Hear::List(part(&signs, 1, 0));
    let later = SystemTime::now() + 2 * DAY;
    assert_eq!(reader.judge.hear(&word, later), refused("one"));
    assert_eq!(reader.refused(Why::Expired), 1);
    let issued = node.identity.own().unwrap().bearer.issued;
    let void = wire::VoidCertificates { node_id: "one".into(), issued_before: issued + 1 };
    reader.identity.void(wire::Voided { reset: false, nodes: vec![void] });
    assert_eq!(reader.hear(&word), refused_again("one"));
    assert_eq!(reader.refused(Why::Void), 1);
    // Certified anew with the same key: what it signed before counts again.
    std::thread::sleep(Duration::from_millis(2));
    let id = "spiffe://shoal/cluster/c1/node/one";
    node.identity.take(authority.certify(&node.identity.request().unwrap(), id, DAY)).unwrap();
    reader.meets("one", &signs);
    assert_eq!(reader.hear(&word), Verdict::Believed);
    // One that was over when it was first seen.
    let late = Node::of(&authority, "late", "c1", Duration::ZERO);
    let signs = late.signs();
    reader.meets("late", &signs);
    assert_eq!(
        reader.judge.hear(&Hear::Head(head(&signs, 1)), SystemTime::now() + Duration::from_secs(2)),
        refused("late")
    );
    assert_eq!(reader.refused(Why::Expired), 2);
}

#[test]
fn certificates_are_looked_at_once_and_again_when_others_are_trusted() {
    let authority = Authority::new();
    let node = Node::member(&authority, "one");
    let signs = node.signs();
    let mut reader = Reader::new(&authority);
    reader.meets("one", &signs);
    let word = Hear::Head(head(&signs, 1));
    let authors = reader.judge.authors.clone().unwrap();
    for _ in 0..3 {
        assert_eq!(reader.hear(&word), Verdict::Believed);
        assert_eq!(authors.seen.lock().authors.len(), 1);
    }
    let other = Authority::new();
    let id = "spiffe://shoal/cluster/c1/node/reader";
    reader.identity.take(other.certify(&reader.identity.request().unwrap(), id, DAY)).unwrap();
    assert_eq!(reader.hear(&word), refused("one"));
    assert_eq!(reader.refused(Why::Foreign), 1);
}

#[test]
fn the_author_of_a_list_is_told_of_no_head_and_takes_what_others_add() {
    let authority = Authority::new();
    let node = Node::member(&authority, "other");
    let signs = node.signs();
    let mut reader = Reader::new(&authority);
    reader.meets("other", &signs);
    let word = Hear::List(part(&signs, 1, 2));
    assert_eq!(reader.hear(&word), Verdict::Nothing);
    reader.judge.reads(SIZE);
    assert_eq!(reader.hear(&word), Verdict::Believed);
    // The same after it has found again, before it has told its size.
    let authors = reader.judge.authors.clone();
    reader.judge = Judge::new(authors, "c1".parse().unwrap(), digest(1), Some(SIZE));
    reader.meets("other", &signs);
    assert_eq!(reader.hear(&word), Verdict::Believed);
    // A size that is not the blob's makes nothing of it believed, until a head says better.
    let authors = reader.judge.authors.clone();
    reader.judge = Judge::new(authors, "c1".parse().unwrap(), digest(1), Some(SIZE - 1));
    reader.meets("other", &signs);
    assert_eq!(reader.hear(&word), refused("other"));
    assert_eq!(reader.hear(&Hear::Head(head(&signs, 1))), Verdict::Believed);
    assert_eq!(reader.hear(&word), Verdict::Believed);
}

#[test]
fn without_certificates_everything_is_passed_on() {
    let mut judge = Judge::new(None, "c1".parse().unwrap(), digest(1), None);
    let head = wire::ListHead { author: "one".into(), size: SIZE, ..Default::default() };
    let part = wire::ListPart { hashes: vec![7; 32], ..Default::default() };
    for word in [Hear::Head(head), Hear::List(part)] {
        assert_eq!(judge.hear(&word, SystemTime::now()), Verdict::Believed);
    }
}
