use std::borrow::Cow;

/// The form in which names, IDCs and location elements compare: Unicode's default case folding (CaseFolding.txt,
/// status C and F), so `STRASSE` equals `straße` and a final sigma equals any other. Does not trim and does not
/// normalize: a composed and a decomposed é differ.
pub fn fold(text: &str) -> Cow<'_, str> {
    if text.is_ascii() {
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Cow::Owned(text.to_ascii_lowercase());
        }
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().fold(String::with_capacity(text.len()), |mut folded, c| {
        fold_char(c, &mut folded);
        folded
    }))
}

/// Down, up and down again reaches full folding from the case mappings of the standard library: the first step takes
/// ẞ to ß, the second ß to SS, the third that to ss. The dotless ı is the one letter that folding keeps and this way
/// would lose.
fn fold_char(c: char, folded: &mut String) {
    if c == 'ı' {
        folded.push(c);
        return;
    }
    folded.extend(c.to_lowercase().flat_map(char::to_uppercase).flat_map(char::to_lowercase));
}

/// The parts between bars, each trimmed, or `None` when one of them is empty. Text that is empty once trimmed has no
/// parts at all.
pub(super) fn parts(text: &str) -> Option<Vec<&str>> {
    if text.trim().is_empty() {
        return Some(Vec::new());
    }
    let parts: Vec<&str> = text.split('|').map(str::trim).collect();
    if parts.iter().any(|part| part.is_empty()) { None } else { Some(parts) }
}
