//! What pages are made of. The templates escape every text; what is put together here is their output alone.

use askama::Template;
use axum::response::Html;
use serde_json::Value;

use super::ask::text;

/// What is around every page.
#[derive(Default)]
pub(super) struct Shell {
    pub(super) title: String,
    /// The entry of the menu that it belongs to.
    pub(super) here: &'static str,
    /// Who looks; empty: nobody is signed in.
    pub(super) name: String,
    pub(super) role: String,
    pub(super) csrf: String,
    pub(super) theme: String,
    /// Where a change of the theme leads back to.
    pub(super) back: String,
    pub(super) error: String,
    pub(super) admin: bool,
}

impl Shell {
    pub(super) fn titled(title: &str) -> Self {
        Self { title: title.to_owned(), ..Self::default() }
    }

    fn is_at(&self, address: &str) -> bool {
        self.here == address
    }

    fn links(&self) -> Vec<(&'static str, &'static str)> {
        let mut links = vec![
            ("/console/", "Overview"),
            ("/console/clusters", "Clusters"),
            ("/console/nodes", "Nodes"),
            ("/console/blobs", "Blobs"),
            ("/console/images", "Images"),
            ("/console/flights", "Flights"),
            ("/console/preheats", "Preheats"),
            ("/console/explain", "Explain"),
            ("/console/tokens", "Tokens"),
            ("/console/members", "Members"),
        ];
        if self.admin {
            links.push(("/console/audit", "Audit"));
        }
        links
    }
}

#[derive(Template)]
#[template(path = "sign_in.html")]
struct SignIn {
    shell: Shell,
}

#[derive(Template)]
#[template(path = "page.html")]
struct Page {
    shell: Shell,
    parts: Vec<String>,
    live: Vec<String>,
    every: u32,
    rest: Vec<String>,
}

fn rendered(template: &impl Template) -> String {
    template.render().expect("a template of texts and numbers always renders into memory")
}

pub(super) fn sign_in(shell: Shell) -> Html<String> {
    Html(rendered(&SignIn { shell }))
}

/// A page that stays as it is.
pub(super) fn page(shell: Shell, parts: Vec<String>) -> Html<String> {
    Html(rendered(&Page { shell, parts, live: Vec::new(), every: 0, rest: Vec::new() }))
}

/// A page whose second half is fetched again, at the latest after so many seconds.
pub(super) fn live(shell: Shell, parts: Vec<String>, live: Vec<String>, every: u32) -> Html<String> {
    Html(rendered(&Page { shell, parts, live, every, rest: Vec::new() }))
}

/// A page whose first half is fetched again; the rest, such as a form that somebody fills in, stays.
pub(super) fn live_first(shell: Shell, live: Vec<String>, rest: Vec<String>, every: u32) -> Html<String> {
    Html(rendered(&Page { shell, parts: Vec::new(), live, every, rest }))
}

/// One cell of a table.
#[derive(Default)]
pub(super) struct Cell {
    text: String,
    link: String,
    done: u64,
    of: u64,
}

impl Cell {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// Text that leads to a page of the console.
    pub(super) fn link(text: impl Into<String>, link: String) -> Self {
        Self { text: text.into(), link, ..Self::default() }
    }

    /// How much is done, in words and as a bar.
    pub(super) fn progress(done: u64, of: u64) -> Self {
        Self { text: format!("{} of {}", bytes(done), bytes(of)), link: String::new(), done, of }
    }

    /// A value of an answer of the API.
    pub(super) fn of(value: &Value) -> Self {
        Self::new(text(value, "none"))
    }
}

#[derive(Template)]
#[template(path = "table.html")]
struct Table<'a> {
    caption: &'a str,
    columns: &'a [&'a str],
    rows: Vec<Vec<Cell>>,
    more: String,
    /// How many there are, in words; empty: the table is all.
    count: String,
}

/// A table; the first cell of a row names the row. `more`: address of the next page, or empty.
pub(super) fn table(caption: &str, columns: &[&str], rows: Vec<Vec<Cell>>, more: String) -> String {
    rendered(&Table { caption, columns, rows, more, count: String::new() })
}

/// The same of a page of a list, as the API gave it: it says how many there are beyond it.
pub(super) fn list(caption: &str, columns: &[&str], rows: Vec<Vec<Cell>>, page: &Value, more: String) -> String {
    let count = counted(rows.len(), page);
    rendered(&Table { caption, columns, rows, more, count })
}

/// How many of how many a page shows.
fn counted(shown: usize, page: &Value) -> String {
    match (page["total"].as_u64(), page["next"].is_null()) {
        (Some(total), _) if total == shown as u64 => String::new(),
        (Some(total), _) => format!("{shown} of {total} are shown."),
        (None, true) => String::new(),
        (None, false) => format!("{shown} are shown, and there are more."),
    }
}

/// One field of a form.
#[derive(Default)]
pub(super) struct Field {
    name: &'static str,
    label: &'static str,
    kind: &'static str,
    value: String,
    hint: &'static str,
    fault: String,
    options: Vec<(String, String)>,
    required: bool,
    /// The form's id and a dash, where that has one.
    form: String,
}

impl Field {
    pub(super) fn new(kind: &'static str, name: &'static str, label: &'static str, hint: &'static str) -> Self {
        Self { name, label, kind, hint, ..Self::default() }
    }

    pub(super) fn hidden(name: &'static str, value: impl Into<String>) -> Self {
        Self { name, kind: "hidden", value: value.into(), ..Self::default() }
    }

    pub(super) fn value(mut self, value: impl Into<String>) -> Self {
        self.value = value.into();
        self
    }

    pub(super) fn fault(mut self, fault: String) -> Self {
        self.fault = fault;
        self
    }

    pub(super) fn options(mut self, options: Vec<(String, String)>) -> Self {
        self.options = options;
        self
    }

    /// One of the options must be chosen, and none is before somebody does.
    pub(super) fn choose(mut self, options: Vec<(String, String)>) -> Self {
        self.options = options;
        self.options.insert(0, (String::new(), "Choose …".to_owned()));
        self.required = true;
        self
    }

    /// Of its own on a page with several forms.
    fn id(&self) -> String {
        format!("{}field-{}", self.form, self.name)
    }

    fn described(&self) -> String {
        let id = self.id();
        if self.fault.is_empty() { format!("{id}-hint") } else { format!("{id}-fault {id}-hint") }
    }
}

/// A form. Without `csrf` it only asks.
#[derive(Template, Default)]
#[template(path = "form.html")]
pub(super) struct Form {
    /// What tells it from other forms of a page that ask for fields of the same names.
    pub(super) id: &'static str,
    pub(super) heading: &'static str,
    pub(super) method: &'static str,
    pub(super) action: String,
    pub(super) csrf: String,
    pub(super) fields: Vec<Field>,
    /// Values of `do`, and what is written on the buttons.
    pub(super) buttons: Vec<(&'static str, &'static str)>,
    /// The script keeps the part `target` fresh while the form is filled in.
    pub(super) live: bool,
    pub(super) target: &'static str,
}

impl Form {
    pub(super) fn html(mut self) -> String {
        if !self.id.is_empty() {
            self.fields.iter_mut().for_each(|field| field.form = format!("{}-", self.id));
        }
        rendered(&self)
    }
}

#[derive(Template)]
#[template(path = "facts.html")]
struct Facts<'a> {
    heading: &'a str,
    facts: Vec<(&'a str, String)>,
}

/// Names and values.
pub(super) fn facts(heading: &str, facts: Vec<(&str, String)>) -> String {
    rendered(&Facts { heading, facts })
}

#[derive(Template, Default)]
#[template(path = "text.html")]
struct Text<'a> {
    heading: &'a str,
    text: &'a str,
    code: bool,
    hint: bool,
    bare: bool,
    link: &'a str,
    label: &'a str,
}

/// A heading of a part.
pub(super) fn heading(text: &str) -> String {
    rendered(&Text { heading: text, bare: true, ..Text::default() })
}

/// A drawing.
pub(super) fn drawn(drawing: &impl Template) -> String {
    rendered(drawing)
}

/// A heading, or none, and a sentence.
pub(super) fn words(heading: &str, text: &str) -> String {
    rendered(&Text { heading, text, ..Text::default() })
}

/// Why something is not there.
pub(super) fn hint(text: &str) -> String {
    rendered(&Text { text, hint: true, ..Text::default() })
}

/// A heading and what is to be copied.
pub(super) fn code(heading: &str, text: &str) -> String {
    rendered(&Text { heading, text, code: true, ..Text::default() })
}

/// A way to another page.
pub(super) fn way(label: &str, link: &str) -> String {
    rendered(&Text { link, label, ..Text::default() })
}

/// A part that the script may put anew, and tells of.
pub(super) fn fresh(id: &'static str, parts: &[String]) -> String {
    format!("<section id=\"{id}\" aria-live=\"polite\">{}</section>", parts.concat())
}

/// Bytes as an answer says them, for people.
pub(super) fn size(value: &Value) -> String {
    value.as_u64().map_or_else(|| "not known".to_owned(), bytes)
}

/// Bytes for people.
pub(super) fn bytes(count: u64) -> String {
    let mut unit = 0;
    let mut rest = count;
    while rest >= 10 * 1024 && unit < 4 {
        rest /= 1024;
        unit += 1;
    }
    format!("{rest} {}", ["B", "KiB", "MiB", "GiB", "TiB"][unit])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_says_how_many_it_does_not_show() {
        for (page, said) in [
            (json!({"total": 3, "next": null}), ""),
            (json!({"total": 1201, "next": "x"}), "3 of 1201 are shown."),
            (json!({"total": 103, "next": null}), "3 of 103 are shown."),
            (json!({"total": null, "next": "x"}), "3 are shown, and there are more."),
            (json!({"total": null, "next": null}), ""),
        ] {
            let rows = (0..3).map(|n| vec![Cell::new(n.to_string())]).collect();
            let table = list("Things", &["Thing"], rows, &page, String::new());
            let shown = table.split_once("<p class=\"hint\">").map_or("", |(_, rest)| rest.split('<').next().unwrap());
            assert_eq!(shown, said, "{page}");
        }
    }

    #[test]
    fn of_what_must_be_chosen_nothing_is_before_somebody_does() {
        let which = Field::new("select", "id", "Which", "It can't be undone.");
        let fields = vec![which.choose(vec![("n1".to_owned(), "a1 (n1)".to_owned())])];
        let page = Form { id: "member", method: "post", fields, ..Form::default() }.html();
        for part in [
            "name=\"id\" required",
            "<option value=\"\" selected>Choose …</option><option value=\"n1\">a1 (n1)</option>",
        ] {
            assert!(page.contains(part), "{part} is not in {page}");
        }
    }
}
