//! How nodes join a cluster, and what becomes of them when it is deleted.

use super::*;

#[tokio::test]
async fn a_join_token_is_shown_once_beside_the_config_that_uses_it() {
    let stage = stage(false).await;
    let browser = stage.sign_in(ADMIN).await;
    let cluster = stage.cluster(&browser, "west", "10.1.0.0/16").await;
    let path = format!("{cluster}/join");
    let page = stage.get(&browser, &path).await;
    for part in [
        "https://control.test:16080",
        "shoalctl --server &#39;http://control.test&#39; --token-file api-token \\",
        "join-token create --cluster &#39;west&#39;",
        "hosts-toml",
        "10.1.0.0/16",
    ] {
        assert!(page.text.contains(part), "{part}: {}", page.text);
    }
    let version = field(&stage.get(&browser, &cluster).await.text, "version");
    let fields = [("do", "save"), ("name", "west"), ("idc", "w1|w2"), ("version", version.as_str())];
    assert_eq!(stage.post(&browser, &cluster, &fields).await.status, 303);
    let several = stage.get(&browser, &path).await.text;
    assert!(several.contains("# Its own data centre, one of w1, w2.\nidc = &#34;w1&#34;"), "{several}");
    let made = stage.post(&browser, &path, &[]).await;
    assert!(made.text.contains("shown this once"), "{}", made.text);
    assert!(!stage.get(&browser, &path).await.text.contains("shown this once"));
}

#[tokio::test]
async fn a_cluster_is_deleted_only_after_it_is_confirmed() {
    let stage = stage(false).await;
    let browser = stage.sign_in(ADMIN).await;
    let cluster = stage.cluster(&browser, "west", "10.1.0.0/16").await;
    let path = format!("{cluster}/delete");
    let version = field(&stage.get(&browser, &path).await.text, "version");
    assert_eq!(stage.post(&browser, &path, &[("version", &version)]).await.status, 303);
    assert_eq!(stage.get(&browser, &cluster).await.status, 404);
}

/// The config that a page gives, as a node reads it.
fn node_config(page: &str) -> toml::Table {
    let (_, from) = page.split_once("node.toml").unwrap_or_else(|| panic!("no config in {page}"));
    let text = from.split_once("<code>").unwrap().1.split_once("</code>").unwrap().0;
    let text = text.replace("&#34;", "\"").replace("&#39;", "'").replace("&#60;", "<").replace("&#62;", ">");
    text.parse().unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[tokio::test]
async fn the_config_says_how_control_speaks_and_what_puts_the_node_into_the_cluster() {
    let stage = stage_of(false, false).await;
    let browser = stage.sign_in(ADMIN).await;
    let west = stage.cluster(&browser, "west", "10.1.0.0/16").await;
    let page = stage.get(&browser, &format!("{west}/join")).await.text;
    let config = node_config(&page);
    assert_eq!(config["tls"].as_str(), Some("off"), "{page}");
    assert_eq!(config["control"]["endpoint"].as_str(), Some("http://control.test:16080"));
    assert_eq!(config["control"].get("join_token_file"), None);
    assert_eq!(config["peer"]["allow"].as_array().unwrap(), &["10.1.0.0/16".into()]);
    assert_eq!(config["node"].get("cluster"), None, "its scope says who is in it");
    assert!(!page.contains("join token") && !page.contains("is bound"), "{page}");
    // Nothing matches a cluster without a scope.
    let bare = stage.cluster(&browser, "a \"quoted\" name", "").await;
    let page = stage.get(&browser, &format!("{bare}/join")).await.text;
    assert_eq!(node_config(&page)["node"]["cluster"].as_str(), Some("a \"quoted\" name"), "{page}");
}

#[tokio::test]
async fn with_certificates_a_token_binds_and_the_page_says_for_how_long() {
    let stage = stage(false).await;
    let browser = stage.sign_in(ADMIN).await;
    let cluster = stage.cluster(&browser, "west", "").await;
    let page = stage.get(&browser, &format!("{cluster}/join")).await.text;
    let config = node_config(&page);
    assert_eq!((config.get("tls"), config.get("peer"), config["node"].get("cluster")), (None, None, None), "{page}");
    assert_eq!(config["control"]["join_token_file"].as_str(), Some("/etc/shoal/join-token"));
    for words in
        ["is bound to this cluster", "whatever its facts and the scopes say", "until it is deleted as a member"]
    {
        assert!(page.contains(words), "{words}: {page}");
    }
    let delete = stage.get(&browser, &format!("{cluster}/delete")).await.text;
    assert!(delete.contains("run alone afterwards, and must join anew"), "{delete}");
}
