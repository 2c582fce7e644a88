//! The console in a real browser: sign in, make a cluster, see nodes join, change a scope and watch a node move, preheat an image;
//! every page in both themes, for people without a mouse too, with screenshots in `.lab/screens`.
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::{
    aftermath,
    browser::Browser,
    image::{Image, Plan},
    registry,
    run::lab_dir,
    wait::eventually,
    world::{World, WorldPlan},
};
use serde_json::Value;

use crate::alone;

const REPOSITORY: &str = "lab/browser";
const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(30);
/// Run in a page: what it lacks.
const LOOK: &str = include_str!("browser/look.js");

async fn browser(world: &World) -> Result<Browser> {
    let net = world.net.namespace("control")?;
    let base = format!("http://{}:6081", net.address);
    let dir = world.dirs.state.join("browser");
    Browser::start(&net, &base, &dir, &lab_dir().join("screens")).await
}

async fn sign_in(world: &World, browser: &Browser) -> Result<()> {
    browser.open("/").await?;
    ensure!(browser.path().await? == "/console/sign-in", "who is nobody sees {}", browser.path().await?);
    looks(browser, "sign-in-light").await?;
    browser.fill("API token", "a token that nobody made").await?;
    browser.press("Sign in").await?;
    ensure!(browser.text().await?.contains("not known"), "a wrong token is told");
    browser.fill("API token", &world.control_ref()?.token()?).await?;
    browser.press("Sign in").await?;
    ensure!(browser.path().await? == "/console/", "signed in, and at {}", browser.path().await?);
    Ok(())
}

/// Waits until the row of that name has these words, without anything being pressed.
async fn shows(browser: &Browser, first: &str, words: &str, within: Duration) -> Result<Duration> {
    let began = Instant::now();
    eventually(within, &format!("{first} with {words}"), || async {
        let row = browser.row(first).await?.with_context(|| format!("there is no row {first}"))?;
        ensure!(row.split('\t').any(|cell| cell.trim() == words), "{row:?}");
        Ok(())
    })
    .await?;
    Ok(began.elapsed())
}

async fn says(browser: &Browser, words: &str) -> Result<()> {
    eventually(SOON, words, || async {
        let text = browser.text().await?;
        ensure!(text.contains(words), "the page says:\n{text}");
        Ok(())
    })
    .await
}

async fn place_of(world: &World, name: &str) -> Result<Option<String>> {
    let nodes = world.control_ref()?.nodes().await?;
    Ok(nodes.into_iter().find(|node| node.name == name).and_then(|node| node.cluster))
}

#[test]
fn an_operator_makes_a_cluster_sees_nodes_join_moves_one_and_preheats_an_image() {
    alone(async {
        let image = Image::obtain(&Plan::random(48_000, vec![24 * MIB, 6 * MIB, MIB]))?;
        let plan = WorldPlan { origin_rate: Some(60_000_000), ..WorldPlan::two_clusters() };
        let mut world = World::start(plan).await?;
        world.registry.push(&image, REPOSITORY, "1").await?;
        let browser = browser(&world).await?;
        sign_in(&world, &browser).await?;

        // A new cluster; its page ends with what joins nodes to it.
        browser.follow("Clusters").await?;
        browser.follow("New cluster").await?;
        browser.fill("Name", "b").await?;
        browser.fill("Data centres", "cluster-2").await?;
        says(&browser, "No live node would move.").await?;
        browser.press("Save").await?;
        says(&browser, "/etc/shoal/node.toml").await?;
        let text = browser.text().await?;
        for words in ["idc = \"cluster-2\"", "join-token", "hosts.toml"] {
            ensure!(text.contains(words), "how nodes join lacks {words}:\n{text}");
        }

        // Nodes join while somebody looks.
        browser.follow("Nodes").await?;
        world.start_nodes().await?;
        for (node, cluster) in [("a1", "default"), ("a2", "default"), ("b1", "b"), ("b2", "b")] {
            shows(&browser, node, cluster, SOON).await?;
        }

        walk(&mut world, &browser).await?;

        // A scope is changed in one tab, and a node moves in the other.
        browser.follow("Nodes").await?;
        let nodes = browser.another_tab().await?;
        browser.open("/console/clusters").await?;
        browser.follow("b").await?;
        browser.fill("Networks", "10.77.1.2/32").await?;
        says(&browser, "1 live node would move.").await?;
        ensure!(browser.row("a2").await?.is_some_and(|row| row.contains("default")), "the preview names a2");
        ensure!(place_of(&world, "a2").await?.as_deref() == Some("default"), "a preview moves nobody");
        let pressed = Instant::now();
        browser.press("Save").await?;
        let scope = browser.look_at(nodes).await?;
        shows(&browser, "a2", "b", Duration::from_secs(1).saturating_sub(pressed.elapsed())).await?;
        println!("a2 was seen in b {:?} after the press", pressed.elapsed());
        browser.look_at(scope).await?;

        // Two operators: the second is told what the first did, and overwrites nothing.
        world.control()?.ctl(&["cluster", "update", "b", "--location", "eu"]).await?;
        browser.fill("Networks", "10.77.9.0/24").await?;
        browser.press("Save").await?;
        says(&browser, "Somebody else changed this cluster").await?;
        let cluster = world.control()?.ctl_json(&["cluster", "show", "b"]).await?;
        ensure!(cluster["cidrs"] == serde_json::json!(["10.77.1.2/32"]), "{cluster}");

        preheat(&mut world, &browser, &image).await?;
        keyboard(&browser).await?;
        every_page(&world, &browser).await?;
        let complaints = browser.complaints().await?;
        // Those for a wrong token, for a preheat of no cluster, and for the second operator.
        let earned =
            |said: &String| ["400", "401", "412"].iter().any(|code| said.contains(&format!("status of {code}")));
        let unexpected: Vec<_> = complaints.iter().filter(|said| !earned(said)).collect();
        ensure!(unexpected.is_empty(), "{unexpected:#?}");

        // Signed out, the same cookie opens nothing.
        browser.press("Sign out").await?;
        browser.open("/console/nodes").await?;
        ensure!(browser.path().await? == "/console/sign-in", "signed out, and at {}", browser.path().await?);
        looks(&browser, "sign-in-dark").await?;
        browser.close().await?;
        aftermath::check(&mut world).await
    });
}

/// The demo's walk, as the console shows it: the first pull of a cluster from the registry, all others from its nodes.
async fn walk(world: &mut World, browser: &Browser) -> Result<()> {
    let image = Image::obtain(&Plan::random(48_001, vec![8 * MIB, 2 * MIB]))?;
    world.registry.push(&image, REPOSITORY, "walk").await?;
    for node in ["a1", "a2", "b1", "b2"] {
        world.node(node)?.pull(REPOSITORY, "walk", &image).await?;
    }
    for (node, first) in [("a1", true), ("a2", false), ("b1", true), ("b2", false)] {
        browser.open("/console/nodes").await?;
        eventually(SOON, "the node in the list", || async { browser.row(node).await?.context("no row").map(drop) })
            .await?;
        browser.follow(node).await?;
        let nothing = "From the origin\n0 B";
        eventually(SOON, "where its bytes came from", || async {
            let text = browser.text().await?;
            let (origin, peers) = (!text.contains(nothing), !text.contains("From peers\n0 B"));
            ensure!((origin, peers) == (first, !first), "{node}: {text}");
            Ok(())
        })
        .await?;
    }
    browser.follow("Images").await?;
    browser.fill("Manifest or digests", &image.manifest).await?;
    browser.press("Show its spread").await?;
    for node in ["a1", "a2", "b1", "b2"] {
        let row = browser.row(node).await?.with_context(|| format!("{node} has nothing of the image"))?;
        ensure!(row.split('\t').any(|cell| cell.trim() == "3"), "{row}");
    }
    let shares = browser.script("return [...document.querySelectorAll('progress')].map(p => p.value / p.max)").await?;
    ensure!(shares == serde_json::json!([1, 1, 1, 1]), "{shares}");
    browser.screenshot("images-spread-light").await.map(drop)
}

async fn preheat(world: &mut World, browser: &Browser, image: &Image) -> Result<()> {
    browser.follow("Preheats").await?;
    browser.fill("Image", &format!("{}/{REPOSITORY}:1", registry::HOST)).await?;
    browser.fill("Cluster", "no such").await?;
    browser.press("Begin").await?;
    says(browser, "there is no cluster").await?;
    browser.fill("Cluster", "b").await?;
    browser.choose("Onto", "all nodes").await?;
    browser.press("Begin").await?;
    ensure!(browser.path().await?.starts_with("/console/preheats/"), "a preheat has a page of its own");
    let running = browser.path().await?;
    // What runs is drawn while it runs.
    let page = browser.another_tab().await?;
    browser.open("/console/flights").await?;
    let drawn = eventually(SOON, "arrows between those who feed and those who fetch", || async {
        let edges = browser.script("return document.querySelectorAll('svg .edge').length").await?;
        ensure!(edges.as_u64().is_some_and(|edges| edges > 0), "{edges} arrows");
        Ok(edges)
    })
    .await?;
    println!("{drawn} arrows in the picture of flights");
    browser.screenshot("flights-running-light").await?;
    browser.look_at(page).await?;
    ensure!(browser.path().await? == running, "the tab of the preheat");
    eventually(SOON, "the preheat to be done", || async {
        let text = browser.text().await?;
        ensure!(text.contains("State\ndone") || text.contains("State done"), "{text}");
        Ok(())
    })
    .await?;
    for node in ["a2", "b1", "b2"] {
        let row = browser.row(node).await?.with_context(|| format!("{node} is not of the preheat"))?;
        ensure!(row.contains("done"), "{row}");
        ensure!(world.node(node)?.shoal()?.held()?.len() > image.layers.len(), "{node} has not all of it");
    }
    // The chart has what came.
    browser.follow("Overview").await?;
    eventually(SOON, "bytes in the chart", || async {
        let points =
            browser.script("return document.querySelector('svg polyline.origin').getAttribute('points')").await?;
        let heights: Vec<f64> = points
            .as_str()
            .unwrap_or_default()
            .split(' ')
            .filter_map(|point| point.split_once(',')?.1.parse().ok())
            .collect();
        ensure!(heights.iter().any(|y| *y < 229.0), "a flat line: {heights:?}");
        Ok(())
    })
    .await
}

/// From the top of a page to its content, and on to a link, by the keyboard alone.
async fn keyboard(browser: &Browser) -> Result<()> {
    browser.open("/console/clusters").await?;
    let mut way = Vec::new();
    for _ in 0..40 {
        let at = browser.tab().await?;
        way.push(at.clone());
        if at == "b" {
            browser.key('\u{e007}').await?;
            eventually(SOON, "the cluster's page", || async {
                ensure!(browser.path().await?.starts_with("/console/clusters/"), "at {}", browser.path().await?);
                Ok(())
            })
            .await?;
            ensure!(way.first().is_some_and(|first| first == "Skip to content"), "{way:?}");
            ensure!(way.iter().any(|at| at == "New cluster"), "{way:?}");
            return Ok(());
        }
    }
    bail!("the tabulator does not lead to the cluster: {way:?}")
}

/// Nothing that people need is lacking on the page that is shown; and what it looks like.
async fn looks(browser: &Browser, name: &str) -> Result<()> {
    let lacks = browser.script(LOOK).await?;
    ensure!(lacks == serde_json::json!([]), "{name}: {lacks:#}");
    browser.screenshot(name).await.map(drop)
}

/// Looks at every page in both themes, and writes what it looks like.
async fn every_page(world: &World, browser: &Browser) -> Result<()> {
    let control = world.control_ref()?;
    let id = |list: Value, name: &str| {
        let found = list.as_array().into_iter().flatten().find(|item| item["name"] == name).cloned();
        found.and_then(|item| Some(item["id"].as_str()?.to_owned())).with_context(|| format!("{name} has an id"))
    };
    let cluster = id(control.ctl_json(&["cluster", "list"]).await?, "b")?;
    let node = id(control.ctl_json(&["node", "list"]).await?, "b1")?;
    let preheats = control.ctl_json(&["preheat", "list"]).await?;
    let preheat = preheats[0]["id"].as_str().context("there was a preheat")?.to_owned();
    let blobs = control.ctl_json(&["blob", "list"]).await?;
    let digest = blobs[0]["digest"].as_str().context("somebody holds something")?.to_owned();
    let pages = [
        ("overview", "/console/".to_owned()),
        ("clusters", "/console/clusters".to_owned()),
        ("cluster-new", "/console/clusters/new".to_owned()),
        ("cluster", format!("/console/clusters/{cluster}")),
        ("cluster-join", format!("/console/clusters/{cluster}/join")),
        ("cluster-delete", format!("/console/clusters/{cluster}/delete")),
        ("nodes", "/console/nodes".to_owned()),
        ("node", format!("/console/nodes/{node}")),
        ("blobs", "/console/blobs".to_owned()),
        ("blob", format!("/console/blobs/{digest}")),
        ("images", "/console/images".to_owned()),
        ("flights", "/console/flights".to_owned()),
        ("preheats", "/console/preheats".to_owned()),
        ("preheat", format!("/console/preheats/{preheat}")),
        ("explain", "/console/explain".to_owned()),
        ("tokens", "/console/tokens".to_owned()),
        ("members", "/console/members".to_owned()),
        ("audit", "/console/audit".to_owned()),
    ];
    for theme in ["light", "dark"] {
        browser.open("/console/").await?;
        browser.choose("Theme", theme).await?;
        browser.press("Set theme").await?;
        for (name, path) in &pages {
            browser.open(path).await?;
            ensure!(browser.path().await? == *path, "{path} leads to {}", browser.path().await?);
            let scheme = browser.script("return getComputedStyle(document.documentElement).colorScheme").await?;
            ensure!(scheme == theme, "{name} is {scheme} instead of {theme}");
            looks(browser, &format!("{name}-{theme}")).await?;
        }
    }
    println!("{} pages in two themes", pages.len());
    Ok(())
}
