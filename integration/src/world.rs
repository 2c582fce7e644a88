//! A whole lab: network, origin, control and nodes, put up in order and taken down in the reverse of it.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    clock::Clock,
    containerd::edition::Edition,
    control::{self, Control},
    mirror::MirrorReader,
    net::{Net, Place},
    node::{Node, NodePlan, Surroundings},
    otlp::{self, Receiver},
    registry::{self, Front, Login, Registry},
    run::RunDirs,
    sweep::sweep,
    tls::Authority,
    tools::{ShoalPrograms, Tools},
    wait::eventually,
};

const REGISTRY_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const CONTROL_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 3);

/// 100 Mbit/s: what the figures of the demo are taken at.
pub const ORIGIN_RATE: u64 = 100_000_000;

/// What of a lab begins with the programs of an earlier revision.
#[derive(Debug, Clone, Default)]
pub struct Earlier {
    /// The control service.
    pub control: bool,
    /// Nodes, by name.
    pub nodes: BTreeSet<String>,
}

/// A lab to be.
#[derive(Debug, Clone)]
pub struct WorldPlan {
    /// The nodes.
    pub nodes: Vec<NodePlan>,
    /// Rate of the origin's link, bits per second.
    pub origin_rate: Option<u64>,
    /// Rate of the nodes' links, bits per second.
    pub node_rate: Option<u64>,
    /// Which containerd every node runs.
    pub edition: Edition,
    /// More machines on the nodes' network, without daemons: name and address.
    pub guests: Vec<(String, Ipv4Addr)>,
    /// More names that every machine knows, beside the registry's.
    pub hosts: Vec<(IpAddr, String)>,
    /// Whether Shoal runs; without it, containerd pulls from the origin itself.
    pub shoal: bool,
    /// Whether daemons show certificates.
    pub tls: bool,
    /// Whether state and logs stay on disk.
    pub keep: bool,
    /// Whether a proxy that can break answers stands before the registry. Worlds that measure have none.
    pub origin: Front,
    /// How the registry knows who asks.
    pub login: Login,
    /// What begins with the programs of an earlier revision; nothing, as a rule.
    pub earlier: Earlier,
}

impl WorldPlan {
    /// Two clusters of two nodes: `a1`, `a2` without an IDC, `b1`, `b2` in the IDC `cluster-2`.
    pub fn two_clusters() -> Self {
        let node = |cluster: u8, name: &str, number: u8, idc: &str| NodePlan {
            name: format!("{name}{number}"),
            address: Ipv4Addr::new(10, 77, cluster, number),
            idc: idc.to_owned(),
            settings: BTreeMap::new(),
        };
        Self {
            nodes: vec![
                node(1, "a", 1, ""),
                node(1, "a", 2, ""),
                node(2, "b", 1, "cluster-2"),
                node(2, "b", 2, "cluster-2"),
            ],
            origin_rate: Some(ORIGIN_RATE),
            node_rate: None,
            edition: Edition::OWN,
            guests: Vec::new(),
            hosts: Vec::new(),
            shoal: true,
            tls: true,
            keep: false,
            origin: Front::Bare,
            login: Login::Bearer,
            earlier: Earlier::default(),
        }
    }

    /// One cluster: `a1`, `a2` and so on.
    pub fn one_cluster(count: u8) -> Self {
        let node = |number| NodePlan {
            name: format!("a{number}"),
            address: Ipv4Addr::new(10, 77, 1, number),
            idc: String::new(),
            settings: BTreeMap::new(),
        };
        Self { nodes: (1..=count).map(node).collect(), ..Self::two_clusters() }
    }

    /// The first `count` nodes only.
    #[must_use]
    pub fn only(mut self, count: usize) -> Self {
        self.nodes.truncate(count);
        self
    }

    /// A machine without daemons.
    #[must_use]
    pub fn with_guest(mut self, name: &str, address: Ipv4Addr) -> Self {
        self.guests.push((name.to_owned(), address));
        self
    }

    /// A name that every machine resolves to an address.
    #[must_use]
    pub fn with_host(mut self, address: IpAddr, name: &str) -> Self {
        self.hosts.push((address, name.to_owned()));
        self
    }

    /// A registry where users log in in that way, and where each may be kept from what is another's.
    #[must_use]
    pub fn with_login(mut self, login: Login) -> Self {
        (self.login, self.origin) = (login, Front::Proxy);
        self
    }

    /// No certificates: for what speaks the protocols by hand, and for what is measured without them.
    #[must_use]
    pub fn without_tls(mut self) -> Self {
        self.tls = false;
        self
    }

    /// A setting of every `shoal-node`, its value in TOML's form.
    #[must_use]
    pub fn with_setting(mut self, key: &str, value: &str) -> Self {
        for node in &mut self.nodes {
            node.settings.insert(key.to_owned(), value.to_owned());
        }
        self
    }
}

/// A running lab. Fields are dropped from the first to the last: daemons before the network they stand in.
pub struct World {
    nodes: BTreeMap<String, Node>,
    control: Option<Control>,
    receiver: Receiver,
    /// The origin.
    pub registry: Registry,
    /// The network.
    pub net: Net,
    /// Where everything is.
    pub dirs: RunDirs,
    plan: WorldPlan,
    around: Surroundings,
    /// The `shoal-node` of an earlier revision.
    older: Option<PathBuf>,
}

impl World {
    /// Removes leftovers of dead runs, then starts network, origin and control. Nodes come by [`World::start_nodes`], when
    /// clusters are made.
    ///
    /// # Errors
    /// When something is missing or can't be started; what was started is taken down.
    pub async fn start(plan: WorldPlan) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("the lab makes network namespaces and needs root: run it with sudo, or `make demo` and `make test`");
        }
        let tools = Tools::locate()?;
        let programs = if plan.shoal { Some(ShoalPrograms::locate()?) } else { None };
        let mixed = programs.is_some() && (plan.earlier.control || !plan.earlier.nodes.is_empty());
        let older = if mixed { Some(ShoalPrograms::of_earlier_revision()?) } else { None };
        for line in sweep().context("remove what a crashed run left")? {
            tracing::info!(removed = line, "left by a crashed run");
        }
        let mut dirs = RunDirs::create()?;
        if plan.keep {
            dirs.keep();
        }
        let mut hosts = vec![(IpAddr::V4(REGISTRY_ADDRESS), registry::HOST.to_owned())];
        hosts.extend(plan.hosts.iter().cloned());
        let net = Net::build(&dirs.id, places(&plan), &hosts)?;
        let authority = Authority::create(&dirs.state)?;
        let receiver = Receiver::spawn(net.namespace("control")?.bind(otlp::PORT)?);
        let (place, state) = (net.namespace("registry")?, dirs.state.join("registry"));
        let kind = (plan.origin, plan.login);
        let registry = Registry::start(&tools.registry, &place, &state, &authority, kind).await?;
        let (mut control, mut join_token) = (None, None);
        if let Some(programs) = &programs {
            let (place, state) = (net.namespace("control")?, dirs.state.join("control"));
            let programs = older.as_ref().filter(|_| plan.earlier.control).unwrap_or(programs);
            let started = Control::start(programs, &place, &state, plan.tls).await?;
            if plan.tls {
                let seeds = plan.nodes.iter().any(|node| node.settings.contains_key("node.role"));
                join_token = Some(started.invite(seeds).await?);
            }
            control = Some(started);
        }
        let around = Surroundings {
            shoal_node: programs.map(|programs| programs.node),
            programs: tools.containerd(plan.edition.version)?,
            edition: plan.edition,
            root_ca: authority.root_file,
            control: CONTROL_ADDRESS,
            join_token,
        };
        let older = older.map(|programs| programs.node);
        Ok(Self { nodes: BTreeMap::new(), control, receiver, registry, net, dirs, plan, around, older })
    }

    /// Starts every node of the plan, and waits until control knows them all.
    ///
    /// # Errors
    /// When one can't be started, or does not register.
    pub async fn start_nodes(&mut self) -> Result<()> {
        let start = |plan: NodePlan| {
            let ns = self.net.namespace(&plan.name);
            let (dir, runtime) = (self.dirs.state.join(&plan.name), self.dirs.runtime.join(&plan.name));
            let mut around = self.around.clone();
            if self.plan.earlier.nodes.contains(&plan.name) {
                around.shoal_node.clone_from(&self.older);
            }
            async move {
                let node = Node::start(&plan, ns?, &dir, &runtime, &around).await;
                Ok::<_, anyhow::Error>((
                    plan.name.clone(),
                    node.with_context(|| format!("start the node {}", plan.name))?,
                ))
            }
        };
        let started = futures::future::try_join_all(self.plan.nodes.clone().into_iter().map(start)).await?;
        self.nodes.extend(started);
        self.all_connected().await
    }

    /// Waits until control has a session with every node that was started.
    ///
    /// # Errors
    /// What control knows after 15 s.
    pub async fn all_connected(&self) -> Result<()> {
        let Some(control) = &self.control else { return Ok(()) };
        let wanted = self.nodes.len();
        eventually(Duration::from_secs(15), "every node at control", || async {
            let known = control.nodes().await?;
            if known.iter().filter(|node| node.connected).count() < wanted {
                bail!("control knows {known:?}");
            }
            Ok(())
        })
        .await
    }

    /// A node.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn node(&mut self, name: &str) -> Result<&mut Node> {
        self.nodes.get_mut(name).with_context(|| format!("no node {name}"))
    }

    /// A node, to be asked alone.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn node_ref(&self, name: &str) -> Result<&Node> {
        self.nodes.get(name).with_context(|| format!("no node {name}"))
    }

    /// A reader of a node's mirror.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn reader(&self, name: &str) -> Result<MirrorReader> {
        Ok(MirrorReader::new(&self.net.namespace(name)?, self.registry.signer().clone()))
    }

    /// A clock for a daemon, to be stepped while it runs.
    ///
    /// # Errors
    /// When the library is missing, or the clock can't be set.
    pub fn clock(&self, name: &str) -> Result<Clock> {
        Clock::new(&Tools::locate()?.faketime, &self.dirs.state.join(format!("clock-{name}")))
    }

    /// All nodes by name.
    pub fn nodes(&self) -> &BTreeMap<String, Node> {
        &self.nodes
    }

    /// The control service.
    ///
    /// # Errors
    /// When the lab runs without Shoal.
    pub fn control(&mut self) -> Result<&mut Control> {
        self.control.as_mut().context("this lab runs without Shoal")
    }

    /// The control service, to ask it something.
    ///
    /// # Errors
    /// When the lab runs without Shoal.
    pub fn control_ref(&self) -> Result<&Control> {
        self.control.as_ref().context("this lab runs without Shoal")
    }

    /// What nodes join by; `None` where there are no certificates.
    ///
    /// # Errors
    /// When its file can't be read.
    pub fn token(&self) -> Result<Option<String>> {
        let read = |path: &PathBuf| std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
        self.around.join_token.as_ref().map(read).transpose()
    }

    /// Where nodes reach control.
    pub fn grpc(&self) -> SocketAddr {
        SocketAddr::from((CONTROL_ADDRESS, control::GRPC_PORT))
    }

    /// Spans received so far; nodes are called by their names instead of their ids.
    ///
    /// # Errors
    /// When control's list of nodes can't be read.
    pub async fn spans(&self) -> Result<Vec<otlp::SpanRecord>> {
        let control = self.control.as_ref().context("this lab runs without Shoal")?;
        let names: BTreeMap<String, String> =
            control.nodes().await?.into_iter().map(|node| (node.id, node.name)).collect();
        let named = |mut span: otlp::SpanRecord| {
            if let Some(name) = names.get(&span.instance) {
                span.instance.clone_from(name);
            }
            span
        };
        Ok(self.receiver.spans().all().into_iter().map(named).collect())
    }

    /// Writes every trace that comes from now on to a file as well, as it came.
    ///
    /// # Errors
    /// When the file can't be made.
    pub fn keep_traces(&self, path: &std::path::Path) -> Result<()> {
        self.receiver.keep_in(path)
    }

    /// The node that has an address.
    pub fn name_of(&self, address: IpAddr) -> Option<String> {
        self.plan.nodes.iter().find(|node| IpAddr::V4(node.address) == address).map(|node| node.name.clone())
    }

    /// What was asked for.
    pub fn plan(&self) -> &WorldPlan {
        &self.plan
    }
}

fn places(plan: &WorldPlan) -> Vec<Place> {
    let outside = [("registry", REGISTRY_ADDRESS, plan.origin_rate), ("control", CONTROL_ADDRESS, None)];
    let outside = outside.map(|(name, address, rate)| Place { name: name.to_owned(), address, rate, counted: false });
    let nodes = plan.nodes.iter().map(|node| Place {
        name: node.name.clone(),
        address: node.address,
        rate: plan.node_rate,
        counted: true,
    });
    let guests = plan.guests.iter().map(|(name, address)| Place {
        name: name.clone(),
        address: *address,
        rate: plan.node_rate,
        counted: false,
    });
    outside.into_iter().chain(nodes).chain(guests).collect()
}
