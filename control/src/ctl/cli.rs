use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Talks to shoal-control: clusters, nodes, and why a node is where it is.
///
/// Exit codes: 0 well, 1 failed, 2 refused or misused, 3 not found, 4 conflict, 5 server unreachable.
#[derive(Debug, Parser)]
#[command(name = "shoalctl", version)]
pub struct Cli {
    /// The control service.
    #[arg(long, global = true, env = "SHOAL_SERVER", default_value = "http://127.0.0.1:6081", value_name = "URL")]
    pub(super) server: String,
    /// How to print answers.
    #[arg(long, short, global = true, value_enum, default_value_t = Output::Table)]
    pub(super) output: Output,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Clusters and their scopes.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Make the clusters be as a file declares them.
    Apply(Apply),
    /// Live nodes.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Say which cluster a node would belong to, and why.
    Explain(Place),
}

#[derive(Debug, Subcommand)]
pub(super) enum ClusterCommand {
    /// Make a cluster.
    Create(Create),
    /// All clusters, oldest first.
    List,
    /// One cluster.
    Show(Named),
    /// Change what is given, and leave the rest.
    Update(Update),
    /// Delete a cluster. Its nodes move to where the other scopes put them.
    Delete(Delete),
}

#[derive(Debug, Args)]
pub(super) struct Named {
    /// Name or id.
    pub(super) cluster: String,
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// Unique without regard to case.
    pub(super) name: String,
    /// Nodes that match nothing come here.
    #[arg(long)]
    pub(super) default: bool,
    /// Data centres, alternatives separated by bars.
    #[arg(long, default_value = "")]
    pub(super) idc: String,
    /// Location, a path separated by bars.
    #[arg(long, default_value = "")]
    pub(super) location: String,
    /// A network. May be given many times, or several separated by commas.
    #[arg(long = "cidr", value_name = "CIDR", value_delimiter = ',')]
    pub(super) cidrs: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Update {
    /// Name or id.
    pub(super) cluster: String,
    /// A new name.
    #[arg(long)]
    pub(super) name: Option<String>,
    /// Whether nodes that match nothing come here.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "true|false")]
    pub(super) default: Option<bool>,
    /// Data centres, alternatives separated by bars. Empty: none any more.
    #[arg(long)]
    pub(super) idc: Option<String>,
    /// Location, a path separated by bars. Empty: none any more.
    #[arg(long)]
    pub(super) location: Option<String>,
    /// Networks; they replace all that the cluster has. May be given many times, or several separated by commas.
    #[arg(long = "cidr", value_name = "CIDR", value_delimiter = ',')]
    pub(super) cidrs: Vec<String>,
    /// No networks any more.
    #[arg(long, conflicts_with = "cidrs")]
    pub(super) no_cidrs: bool,
    /// Only if the cluster is at this version.
    #[arg(long, value_name = "VERSION")]
    pub(super) if_version: Option<u64>,
}

#[derive(Debug, Args)]
pub(super) struct Delete {
    /// Name or id.
    pub(super) cluster: String,
    /// Also if live nodes are in it, or if it is the default.
    #[arg(long)]
    pub(super) force: bool,
    /// Only if the cluster is at this version.
    #[arg(long, value_name = "VERSION")]
    pub(super) if_version: Option<u64>,
}

#[derive(Debug, Args)]
pub(super) struct Apply {
    /// A TOML file with any number of [[cluster]]: name, default, idc, location, cidrs. `-` reads standard input.
    #[arg(long, short, value_name = "FILE")]
    pub(super) file: PathBuf,
    /// Only print what would change.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Delete clusters that the file does not have.
    #[arg(long)]
    pub(super) prune: bool,
    /// Prune clusters that have live nodes, too.
    #[arg(long, requires = "prune")]
    pub(super) force: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum NodeCommand {
    /// All live nodes.
    List,
}

#[derive(Debug, Args)]
pub(super) struct Place {
    /// The node's address.
    #[arg(long)]
    pub(super) ip: String,
    /// The node's data centre.
    #[arg(long, default_value = "")]
    pub(super) idc: String,
    /// The node's location, `a|b|c`.
    #[arg(long, default_value = "")]
    pub(super) location: String,
    /// The cluster that the node's config names.
    #[arg(long, value_name = "NAME")]
    pub(super) pin: Option<String>,
}
