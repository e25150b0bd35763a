// SPDX-License-Identifier: Apache-2.0
//! A running instance of a container, for whoever looks at it or runs something beside it.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use meltemi_linux::process::{Child, Exit};
use meltemi_linux::pty;
use nix::fcntl::Flock;
use tokio::net::unix::pipe as tokio_pipe;
use tokio::sync::{broadcast, watch};

use crate::cgroups::Group;
use crate::logs::Stream;
use crate::pod_init::Rights;
use crate::sandbox::Exec;

/// A running instance.
pub(crate) struct Running {
    pub child: Child,
    pub group: Arc<Group>,
    /// Keeps the files of its image from being removed.
    pub _image: Option<Flock<File>>,
    pub env: Vec<(String, String)>,
    pub cwd: PathBuf,
    pub rights: Rights,
    pub output: broadcast::Sender<(Stream, Bytes)>,
    pub stdin: Mutex<Option<tokio_pipe::Sender>>,
    pub terminal: Option<Arc<pty::Master>>,
    pub exit: watch::Receiver<Option<Exit>>,
}

impl Running {
    /// Waits for its end.
    pub(crate) async fn ended(&self) -> Exit {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(found) => found.unwrap_or(Exit::Code(255)),
            Err(_) => Exit::Code(255),
        }
    }

    /// A program to run beside it.
    pub(crate) fn exec(&self, argv: Vec<String>) -> Exec {
        let group = Some(self.group.clone());
        Exec { argv, env: self.env.clone(), cwd: self.cwd.clone(), rights: self.rights.clone(), group }
    }
}
