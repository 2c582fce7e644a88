//! A real browser in a namespace: Debian's headless Chromium, driven through its WebDriver.
//!
//! What it asks goes out of the namespace it stands in, and nowhere else: there is no way to the Internet from there.
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use fantoccini::{
    Client, ClientBuilder, Locator,
    elements::Element,
    error::{CmdError, ErrorStatus},
    wd::WebDriverCompatibleCommand,
};
use http::{Method, Uri};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use crate::{net::Netns, process::Daemon, tools, wait::eventually};

/// Where the driver listens, on the namespace's loopback.
const PORT: u16 = 9515;
const WIDTH: u32 = 1280;
/// The tallest screenshot.
const TALLEST: u64 = 6000;
/// How long a page may take to show something.
const SOON: Duration = Duration::from_secs(10);

/// A browser with one user, who keeps nothing when it ends.
pub struct Browser {
    client: Client,
    base: String,
    screens: PathBuf,
    _driver: Daemon,
}

/// What the browser's console was told: errors of scripts, and what a policy forbade.
#[derive(Debug)]
struct Log;

impl WebDriverCompatibleCommand for Log {
    fn endpoint(&self, base: &url::Url, session: Option<&str>) -> Result<url::Url, url::ParseError> {
        base.join(&format!("session/{}/se/log", session.unwrap_or_default()))
    }

    fn method_and_body(&self, _: &url::Url) -> (Method, Option<String>) {
        (Method::POST, Some(json!({"type": "browser"}).to_string()))
    }
}

impl Browser {
    /// Starts one in the namespace. `base` is what addresses begin with; its files go below `dir`, screenshots into `screens`.
    ///
    /// # Errors
    /// When the browser is missing or does not come up: the message tells what to do.
    pub async fn start(ns: &Netns, base: &str, dir: &Path, screens: &Path) -> Result<Self> {
        let tools::Chromium { browser, driver } = tools::chromium()?;
        for dir in [dir, screens] {
            fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        }
        let mut command = ns.command(&driver);
        command.arg(format!("--port={PORT}")).env("HOME", dir).env("TMPDIR", dir);
        let mut daemon = Daemon::spawn("chromedriver", command, &dir.join("chromedriver.log"))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
        let listens = eventually(SOON, "the driver to listen", || async { ns.connect(address).await.map(drop) }).await;
        if listens.is_err() {
            daemon.check_running()?;
        }
        listens?;
        let from = ns.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let from = from.clone();
            Box::pin(async move { from.connect(address).await.map(TokioIo::new) })
        });
        let profile = format!("--user-data-dir={}", dir.join("profile").display());
        let args = [
            "--headless=new",
            // The lab is root in namespaces of its own; Chromium's sandbox would make more of them.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-background-timer-throttling",
            "--disable-renderer-backgrounding",
            "--no-first-run",
            &profile,
        ];
        let options = json!({
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": browser, "args": args},
            "goog:loggingPrefs": {"browser": "ALL"},
        });
        let Value::Object(options) = options else { bail!("the options are no object") };
        let client = ClientBuilder::new(connector).capabilities(options).connect("http://127.0.0.1:9515").await;
        let client = client.with_context(|| format!("start Chromium; see {}", daemon.log().display()))?;
        client.set_window_size(WIDTH, 900).await?;
        Ok(Self { client, base: base.to_owned(), screens: screens.to_owned(), _driver: daemon })
    }

    /// Goes to a page.
    ///
    /// # Errors
    /// When it does not load.
    pub async fn open(&self, path: &str) -> Result<()> {
        self.client.goto(&format!("{}{path}", self.base)).await.with_context(|| format!("open {path}"))
    }

    /// The path of the page that is shown.
    ///
    /// # Errors
    /// When the browser does not say.
    pub async fn path(&self) -> Result<String> {
        Ok(self.client.current_url().await?.path().to_owned())
    }

    async fn find(&self, locator: Locator<'_>) -> Result<Element> {
        let found = self.client.wait().at_most(SOON).for_element(locator).await;
        found.with_context(|| format!("find {locator:?}"))
    }

    /// Writes into a field that people know by its label, in place of what is there.
    ///
    /// # Errors
    /// When there is no such label, or nothing that it names.
    pub async fn fill(&self, label: &str, text: &str) -> Result<()> {
        let field = self.labelled(label).await?;
        field.clear().await?;
        field.send_keys(text).await.with_context(|| format!("write into {label}"))
    }

    /// Chooses in a list that people know by its label.
    ///
    /// # Errors
    /// When there is no such label, or no such choice.
    pub async fn choose(&self, label: &str, choice: &str) -> Result<()> {
        self.labelled(label).await?.select_by_label(choice).await.with_context(|| format!("choose {choice} in {label}"))
    }

    async fn labelled(&self, label: &str) -> Result<Element> {
        // By what it is for, or by what is in it.
        let quoted = json!(label).to_string();
        let path = format!(
            "//*[@id=//label[normalize-space(text())={quoted}]/@for] | //label[normalize-space(text())={quoted}]//*[self::input or self::select or self::textarea]"
        );
        self.find(Locator::XPath(&path)).await
    }

    /// Presses a button by what is written on it, and waits for the page that it leads to.
    ///
    /// # Errors
    /// When there is none, or nothing follows.
    pub async fn press(&self, button: &str) -> Result<()> {
        self.leave_by(&format!(
            "//main//button[normalize-space()={0}] | //button[normalize-space()={0}]",
            json!(button)
        ))
        .await
    }

    /// Follows a link by its words.
    ///
    /// # Errors
    /// When there is none.
    pub async fn follow(&self, words: &str) -> Result<()> {
        self.leave_by(&format!("//a[normalize-space()={}]", json!(words))).await
    }

    /// Clicks on something that leads to another page, and waits until that is there.
    async fn leave_by(&self, xpath: &str) -> Result<()> {
        let here = self.find(Locator::Css("html")).await?;
        self.find(Locator::XPath(xpath)).await?.click().await.with_context(|| format!("click on {xpath}"))?;
        eventually(SOON, &format!("a page after {xpath}"), || async {
            // The page is another one when nothing of the old can be asked any more.
            match here.tag_name().await {
                Err(CmdError::Standard(error)) if error.error == ErrorStatus::StaleElementReference => Ok(()),
                Err(CmdError::Standard(error)) if error.error == ErrorStatus::NoSuchElement => Ok(()),
                Ok(_) => bail!("the same page"),
                Err(error) => Err(error.into()),
            }
        })
        .await?;
        self.find(Locator::Css("main h1")).await.map(drop)
    }

    /// The words of the page's main part, as people see them.
    ///
    /// # Errors
    /// When there is no such part.
    pub async fn text(&self) -> Result<String> {
        Ok(self.find(Locator::Css("main")).await?.text().await?)
    }

    /// The words of the table row whose first cell says this; `None` when there is none.
    ///
    /// # Errors
    /// When the browser does not answer.
    pub async fn row(&self, first: &str) -> Result<Option<String>> {
        let script = "for (const row of document.querySelectorAll('tbody tr')) { \
                      if (row.cells[0].innerText.trim() === arguments[0]) return row.innerText; } return null;";
        let found = self.client.execute(script, vec![first.into()]).await?;
        Ok(found.as_str().map(str::to_owned))
    }

    /// Runs a script in the page and gives what it returns.
    ///
    /// # Errors
    /// When it fails.
    pub async fn script(&self, script: &str) -> Result<Value> {
        self.client.execute(script, Vec::new()).await.context("run a script in the page")
    }

    /// Presses the tabulator, as people do who use no mouse, and says where that leads: the words of the link or button, or the
    /// label of the field.
    ///
    /// # Errors
    /// When the browser does not answer.
    pub async fn tab(&self) -> Result<String> {
        self.find(Locator::Css("body")).await?;
        let focused = self.client.active_element().await?;
        focused.send_keys("\u{e004}").await?;
        let script = "const e = document.activeElement; return e.labels?.length ? e.labels[0].innerText : e.innerText;";
        Ok(self.script(script).await?.as_str().unwrap_or_default().trim().to_owned())
    }

    /// Presses the key of that WebDriver code where the focus is.
    ///
    /// # Errors
    /// When the browser does not answer.
    pub async fn key(&self, key: char) -> Result<()> {
        self.client.active_element().await?.send_keys(&key.to_string()).await.context("press a key")
    }

    /// Opens another tab, and stays on it. The answer leads back to the first.
    ///
    /// # Errors
    /// When the browser does not answer.
    pub async fn another_tab(&self) -> Result<Tab> {
        let first = self.client.window().await?;
        let new = self.client.new_window(true).await?;
        self.client.switch_to_window(new.handle).await?;
        Ok(Tab(first))
    }

    /// Looks at another tab, and says which one was looked at before.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn look_at(&self, tab: Tab) -> Result<Tab> {
        let before = self.client.window().await?;
        self.client.switch_to_window(tab.0).await?;
        Ok(Tab(before))
    }

    /// A screenshot of the whole page, as `NAME.png`.
    ///
    /// # Errors
    /// When it can't be made or kept.
    pub async fn screenshot(&self, name: &str) -> Result<PathBuf> {
        let script = "return document.documentElement.scrollHeight";
        let height = self.script(script).await?.as_u64().unwrap_or(900).clamp(600, TALLEST);
        self.client.set_window_size(WIDTH, u32::try_from(height)? + 150).await?;
        let picture = self.client.screenshot().await?;
        self.client.set_window_size(WIDTH, 900).await?;
        ensure!(picture.starts_with(b"\x89PNG"), "a screenshot is no PNG");
        let file = self.screens.join(format!("{name}.png"));
        fs::write(&file, picture).with_context(|| format!("write {}", file.display()))?;
        Ok(file)
    }

    /// What scripts and policies complained about since it was asked last.
    ///
    /// # Errors
    /// When the driver does not say.
    pub async fn complaints(&self) -> Result<Vec<String>> {
        let said = self.client.issue_cmd(Log).await?;
        let entries = said.as_array().into_iter().flatten();
        Ok(entries.filter_map(|entry| entry["message"].as_str()).map(str::to_owned).collect())
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it does not end in order.
    pub async fn close(self) -> Result<()> {
        self.client.close().await.context("close the browser")
    }
}

/// A tab.
pub struct Tab(fantoccini::wd::WindowHandle);
