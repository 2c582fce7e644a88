//! What holds for any scopes and facts: the fuzz target of `integration/fuzz`, and the test that plays its corpus.

use super::{Facts, Scopes, parse_file};

/// Three lines with a node's address, IDC and location, then a clusters file. What is accepted is accepted again in the
/// form in which it is shown, and decides the same; the decision is that of the rules as DESIGN section 6 has them.
///
/// # Panics
/// When that does not hold.
pub fn scope(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.splitn(4, '\n');
    let mut line = || lines.next().unwrap_or_default();
    let (ip, idc, location, file) = (line(), line(), line(), line());
    let facts = Facts::parse(ip, idc, location);
    match &facts {
        Ok(facts) => {
            let again = Facts::parse(&facts.ip().to_string(), facts.idc(), facts.location());
            assert_eq!(again.as_ref(), Ok(facts), "facts are shown in a form that means something else");
        }
        Err(bad) => assert!(!bad.is_empty() && bad.iter().all(|fact| !fact.reason.is_empty()), "{bad:?}"),
    }
    let Ok(scopes) = parse_file(file) else { return };
    let again = Scopes::check(scopes.clusters().to_vec()).expect("what is shown of scopes is accepted");
    assert_eq!(again.clusters(), scopes.clusters());
    let Ok(facts) = facts else { return };
    for pin in [None, Some(idc)] {
        let explanation = scopes.explain(&facts, pin);
        let decision = scopes.decide(&facts, pin);
        let name = |at: usize| scopes.clusters()[at].name.clone();
        assert_eq!(explanation.cluster, decision.cluster.map(name), "{explanation:?}");
        assert!(!decision.reason.is_empty());
        assert_eq!(again.decide(&facts, pin), decision);
        assert_eq!(explanation.considered.len(), scopes.clusters().len());
        let first = explanation.considered.first();
        let first = first.filter(|one| one.cidr.is_some() || one.idc.is_some() || one.location.is_some());
        if let (None, Some(first)) = (pin, first) {
            assert_eq!(explanation.cluster.as_ref(), Some(&first.cluster), "{explanation:?}");
        }
    }
}
