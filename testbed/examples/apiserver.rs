//! The double of the Kubernetes API server as a process: so many Services with so many endpoints each, of which so many
//! change a second. Runs until it is ended. Objects can be written over HTTP as to a real one.
//!
//! A change moves one endpoint of a Service to another address.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use testbed::apiserver::objects::{node, numbered, numbered_endpoint, service_cidr, slice};
use testbed::apiserver::{Access, ApiServer, Cluster, Options};

#[derive(Debug, Parser)]
struct Args {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:6443")]
    listen: SocketAddr,
    /// Write a kubeconfig here, by which it can be asked.
    #[arg(long, value_name = "FILE")]
    kubeconfig: PathBuf,
    /// HTTP without TLS, for everybody.
    #[arg(long)]
    plain: bool,
    /// How many Services there are.
    #[arg(long, default_value_t = 10_000)]
    services: u32,
    /// How many endpoints each has.
    #[arg(long, default_value_t = 10)]
    endpoints: u32,
    /// How many endpoints change a second.
    #[arg(long, default_value_t = 0)]
    changes: u32,
    /// The Node that there is.
    #[arg(long, default_value = "node-0")]
    node: String,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let cluster = Arc::new(Cluster::default());
    cluster.put(node(&args.node, &[args.listen.ip()], &["10.244.0.0/24"]))?;
    cluster.put(service_cidr("kubernetes", &["10.96.0.0/12"]))?;
    for object in (0..args.services).flat_map(|number| numbered(number, args.endpoints)) {
        cluster.put(object)?;
    }
    let listener = TcpListener::bind(args.listen).with_context(|| format!("listening at {}", args.listen))?;
    let options = Options { tls: !args.plain, ..Options::default() };
    let access = Arc::new(Access::new(args.plain)?);
    let token = "weir";
    access.allow_token(token, "system:kube-proxy");
    let server = ApiServer::start_at(listener, options, Arc::clone(&cluster), access, Arc::default())?;
    std::fs::write(&args.kubeconfig, server.kubeconfig(token))?;
    println!("{} with {} services of {} endpoints", server.url(), args.services, args.endpoints);
    let begun = Instant::now();
    for change in 0_u32.. {
        match args.changes {
            0 => std::thread::sleep(Duration::MAX),
            changes => {
                let due = begun + Duration::from_secs(1) * change / changes;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                let number = change % args.services.max(1);
                cluster.put(moved(number, args.endpoints, change))?;
            }
        }
    }
    Ok(())
}

/// The slice of a Service with its first endpoint somewhere else.
fn moved(number: u32, endpoints: u32, change: u32) -> serde_json::Value {
    let (namespace, name) = (format!("ns-{}", number % 50), format!("service-{number}"));
    let mut all: Vec<_> = (0..endpoints).map(|index| numbered_endpoint(number * endpoints + index)).collect();
    if let Some(first) = all.first_mut() {
        first.addr = numbered_endpoint((1 << 18) + change % (1 << 16)).addr;
    }
    slice(&namespace, &name, &format!("{name}-abcde"), &[("http", 8080, "TCP")], &all)
}
