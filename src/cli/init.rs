//! `kvorum cluster init`: make a cluster of nodes that wait for one.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use super::context::{Context, check_address};
use super::failure::{Done, Failure};
use super::output::{Format, print_line};
use super::records::{FileFormat, Records, SourceArgs};
use super::{admin, input};
use crate::rpc::convert;
use crate::rpc::v1::{InitReply, InitRequest};
use crate::types::limits::MAX_SHARDS;
use crate::{Error, Result};

/// More sample keys than this are thinned out: they only say where to cut.
const MAX_SAMPLE_KEYS: usize = 8_192;

const EXAMPLES: &str = "\
Examples:
  On each machine:    kvorum serve --listen 10.0.0.1:7400 --join 10.0.0.1:7400,10.0.0.2:7400,10.0.0.3:7400
  Once, anywhere:     kvorum cluster init --nodes 10.0.0.1:7400,10.0.0.2:7400,10.0.0.3:7400 --shards 8

  kvorum cluster init --split-key h --split-key p              three shards, cut at these keys
  kvorum cluster init --shards 8 --sample-keys keys.txt        cut where these keys (one a line) are even

It can be repeated until it succeeds; once a cluster is formed it is refused.";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The gRPC addresses of all nodes; by default those of --endpoints.
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',')]
    nodes: Vec<String>,
    /// Cut the keyspace into so many shards of about equal numbers of keys.
    #[arg(long, value_name = "N", conflicts_with = "split_key", value_parser = clap::value_parser!(u32).range(1..=MAX_SHARDS as i64))]
    shards: Option<u32>,
    /// Cut the keyspace before this key; may be given several times, rising.
    #[arg(long, value_name = "KEY")]
    split_key: Vec<OsString>,
    /// A file of keys like those that will be stored, one a line; with --shards.
    #[arg(long, value_name = "FILE", requires = "shards")]
    sample_keys: Option<PathBuf>,
    /// Replicas of each shard; by default 3, or as many as there are nodes.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    replicas: Option<u32>,
}

impl Args {
    fn request(&self, context: &Context) -> Result<InitRequest, Failure> {
        let nodes = if self.nodes.is_empty() { context.endpoints.clone() } else { self.nodes.clone() };
        nodes.iter().try_for_each(|node| check_address(node, "--nodes"))?;
        let split_keys: Vec<Bytes> =
            self.split_key.iter().map(|key| input::key(key, context.hex)).collect::<Result<_>>()?;
        let sample_keys = match &self.sample_keys {
            Some(file) => sample_keys(file.clone())?,
            None => Vec::new(),
        };
        Ok(InitRequest {
            nodes,
            split_keys,
            shards: self.shards.unwrap_or(0),
            sample_keys,
            replicas: self.replicas.unwrap_or(0),
        })
    }
}

/// The keys of a file, thinned evenly where they are very many.
pub fn sample_keys(file: PathBuf) -> Result<Vec<Bytes>, Failure> {
    let source = SourceArgs { file, format: FileFormat::Lines, key: None, prefix: OsString::new() };
    let mut keys: Vec<Bytes> = Vec::new();
    let mut keep_every = 1;
    for (at, next) in Records::open(&source)?.enumerate() {
        let next = next.map_err(|error| super::failure::file_error(&source.file, "read", &error))?;
        let (_, pair) = next.map_err(|bad| {
            Error::invalid(format!("line {} of {}: {}", bad.line, source.file.display(), bad.reason))
        })?;
        if at % keep_every == 0 {
            keys.push(pair.key);
        }
        if keys.len() > MAX_SAMPLE_KEYS {
            let mut nth = 0;
            keys.retain(|_| {
                nth += 1;
                nth % 2 == 1
            });
            keep_every *= 2;
        }
    }
    Ok(keys)
}

pub async fn run(context: &Context, args: Args) -> Result<Done, Failure> {
    let request = args.request(context)?;
    let reply = init(request, context.deadline).await?;
    print_line(match context.output {
        Format::Text => describe(&reply),
        Format::Json => json!({
            "cluster_id": reply.cluster_id,
            "nodes": reply.nodes.iter().map(|node| json!({ "id": node.id, "grpc": node.grpc_addr, "http": node.http_addr })).collect::<Vec<_>>(),
            "shards": reply.shards.len(),
        })
        .to_string(),
    })?;
    Ok(Done::Ok)
}

fn describe(reply: &InitReply) -> String {
    let nodes: Vec<String> =
        reply.nodes.iter().map(|node| format!("  node {}: {}", node.id, node.grpc_addr)).collect();
    format!(
        "cluster {} is formed: {} nodes, {} shards\n{}",
        reply.cluster_id,
        reply.nodes.len(),
        reply.shards.len(),
        nodes.join("\n")
    )
}

/// Asks the first node to form the cluster.
pub async fn init(request: InitRequest, deadline: Duration) -> Result<InitReply> {
    let Some(first) = request.nodes.first().cloned() else {
        return Err(Error::invalid("a cluster needs at least one node: give --nodes"));
    };
    let reply = admin::connect(&first, deadline).await?.init(request).await;
    Ok(reply.map_err(|status| convert::error_from_status(&status))?.into_inner())
}
