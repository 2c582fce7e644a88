//! What nothing that people name may be called: a name that can't be asked for again, or that passes for another thing.

use uuid::Uuid;

/// Why a new name of a cluster or an API token is not taken; `None`: it is.
///
/// What is stored keeps its name: this is asked of new ones alone. Length and the rest are for whoever keeps the thing to judge.
pub fn unfit_name(name: &str) -> Option<&'static str> {
    match () {
        // Addresses are shortened by them (RFC 3986 section 5.2.4).
        () if matches!(name, "." | "..") => Some("is a step in a path, which can't be asked for by an address"),
        // The ids of clusters and nodes; what is asked for by id or name is looked for by id first.
        () if name.len() == 36 && Uuid::try_parse(name).is_ok() => Some("has the form of a UUID, as ids have"),
        () if name.chars().any(is_unseen) => Some("has a control character or an invisible one in it"),
        () => None,
    }
}

/// Characters that nobody sees, or that change how what is around them is seen: Unicode's Cc, and of Cf those that join, separate and
/// turn text.
fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_can_not_be_asked_for_or_pass_for_others_are_unfit() {
        let id = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
        for name in
            [".", "..", id, &id.to_uppercase(), "a\u{200b}b", "\u{202e}b", "a\u{2066}", "\u{feff}a", "a\nb", "\u{85}"]
        {
            assert!(unfit_name(name).is_some(), "{name:?}");
        }
        for name in ["...", ".a", "west", "Größe 2", "6ba7b8109dad11d180b400c04fd430c8", "a/b", "日本", "e\u{301}"]
        {
            assert_eq!(unfit_name(name), None, "{name:?}");
        }
    }
}
