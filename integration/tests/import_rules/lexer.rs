//! Rust source as words and marks, without comments and literals. Knows as much of Rust as the import rules need.

/// A word (identifier or keyword) or a mark; `::` is one mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) text: String,
    /// Counted from 1.
    pub(crate) line: usize,
}

pub(crate) fn tokens(source: &str) -> Vec<Token> {
    let mut lexer = Lexer { rest: source, line: 1, found: Vec::new() };
    while !lexer.rest.is_empty() {
        lexer.step();
    }
    lexer.found
}

struct Lexer<'a> {
    rest: &'a str,
    line: usize,
    found: Vec<Token>,
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

impl Lexer<'_> {
    fn step(&mut self) {
        let rest = self.rest;
        if rest.starts_with("//") {
            self.skip(rest.find('\n').unwrap_or(rest.len()));
        } else if rest.starts_with("/*") {
            self.skip(block_comment(rest));
        } else if rest.starts_with('"') {
            self.skip(string(rest));
        } else if rest.starts_with('\'') {
            self.skip(char_or_lifetime(rest));
        } else if rest.starts_with(is_word) {
            let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            if matches!(word, "r" | "br" | "cr")
                && let Some(length) = raw_string(after)
            {
                self.skip(end + length);
            } else if word == "r" && after.starts_with('#') {
                // A raw identifier is never a keyword such as `crate`.
                let name = after[1..].find(|c| !is_word(c)).unwrap_or(after.len() - 1);
                self.take(end + 1 + name);
            } else {
                self.take(end);
            }
        } else if rest.starts_with("::") {
            self.take(2);
        } else {
            let c = rest.chars().next().unwrap_or(' ');
            if c.is_whitespace() { self.skip(c.len_utf8()) } else { self.take(c.len_utf8()) }
        }
    }

    fn skip(&mut self, length: usize) {
        let (gone, rest) = self.rest.split_at(length.clamp(1, self.rest.len()));
        self.line += gone.matches('\n').count();
        self.rest = rest;
    }

    fn take(&mut self, length: usize) {
        self.found.push(Token { text: self.rest[..length].to_owned(), line: self.line });
        self.skip(length);
    }
}

/// They nest.
fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0usize, 0);
    while let Some(step) = rest[at..].find(['/', '*']) {
        at += step;
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

fn string(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// What follows the `r`: `"..."` or `#"..."#`, with as many marks as one likes.
fn raw_string(after: &str) -> Option<usize> {
    let marks = after.len() - after.trim_start_matches('#').len();
    let body = after[marks..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(marks));
    let length = body.find(&end).map_or(body.len(), |at| at + end.len());
    Some(marks + 1 + length)
}

fn char_or_lifetime(rest: &str) -> usize {
    let mut inner = rest.char_indices().skip(1);
    match inner.next() {
        Some((_, '\\')) => {
            // The first character after the backslash belongs to it, also if it is a quote.
            inner.next();
            inner.find(|(_, c)| *c == '\'').map_or(rest.len(), |(at, _)| at + 1)
        }
        Some((_, first)) => match inner.next() {
            Some((at, '\'')) => at + 1,
            _ if is_word(first) => 1 + rest[1..].find(|c| !is_word(c)).unwrap_or(rest.len() - 1),
            _ => 1,
        },
        None => 1,
    }
}
