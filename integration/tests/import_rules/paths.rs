//! Which items of a crate's root a file names.

use super::lexer::Token;

/// A name of the crate's root, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    /// The item; `None` for the whole root (a glob, or the root under another name).
    pub(crate) item: Option<String>,
    pub(crate) line: usize,
}

/// Every path that starts at the crate's root: `crate::x`, or `super::x` where that reaches the root from `module`, the
/// file's own place in the crate (`["mirror", "body"]`). `outside` is the crate's name, for the files of its binaries.
pub(crate) fn named(tokens: &[Token], module: &[String], outside: Option<&str>) -> Vec<Named> {
    let mut found = Vec::new();
    // Modules inside the file that are open here, each with the depth of its brace.
    let mut inner: Vec<usize> = Vec::new();
    let mut depth = 0usize;
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    for (at, token) in tokens.iter().enumerate() {
        match token.text.as_str() {
            "{" => {
                depth += 1;
                if at >= 2 && text(at - 2) == "mod" {
                    inner.push(depth);
                }
            }
            "}" => {
                if inner.last() == Some(&depth) {
                    inner.pop();
                }
                depth = depth.saturating_sub(1);
            }
            "crate" if starts_path(tokens, at) && outside.is_none() => match text(at + 1) {
                "::" => items(tokens, at + 2, &mut found),
                "as" => found.push(Named { item: None, line: token.line }),
                _ => {}
            },
            "super" if starts_path(tokens, at) && outside.is_none() => {
                let mut up = 1;
                while text(at + 2 * up - 1) == "::" && text(at + 2 * up) == "super" {
                    up += 1;
                }
                let after = at + 2 * up - 1;
                if up == module.len() + inner.len() && text(after) == "::" {
                    items(tokens, after + 1, &mut found);
                }
            }
            name if Some(name) == outside && starts_path(tokens, at) && text(at + 1) == "::" => {
                items(tokens, at + 2, &mut found);
            }
            _ => {}
        }
    }
    found
}

/// `self::` in front changes nothing.
fn starts_path(tokens: &[Token], at: usize) -> bool {
    let before = |steps: usize| at.checked_sub(steps).map_or("", |at| tokens[at].text.as_str());
    before(1) != "::" || before(2) == "self"
}

/// What stands after the root: one name, or a group of paths.
fn items(tokens: &[Token], at: usize, found: &mut Vec<Named>) {
    let Some(first) = tokens.get(at) else { return };
    if first.text != "{" {
        found.push(one(first));
        return;
    }
    let mut depth = 0usize;
    let mut expected = true;
    for token in &tokens[at..] {
        match token.text.as_str() {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                if depth == 0 {
                    return;
                }
            }
            "," if depth == 1 => expected = true,
            _ if depth == 1 && expected => {
                expected = false;
                found.push(one(token));
            }
            _ => {}
        }
    }
}

fn one(token: &Token) -> Named {
    let whole = matches!(token.text.as_str(), "*" | "self");
    Named { item: (!whole).then(|| token.text.clone()), line: token.line }
}
