// SPDX-License-Identifier: Apache-2.0
//! A running instance of a container, for whoever looks at it or runs something beside it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use meltemi_linux::process::{Child, Exit};
use meltemi_linux::pty;
use nix::fcntl::Flock;
use tokio::net::unix::pipe as tokio_pipe;
use tokio::sync::{broadcast, watch};

use crate::cgroups::Group;
use crate::lock::lock;
use crate::logs::Stream;
use crate::pod_init::Rights;
use crate::sandbox::Exec;

/// The program's input, for those who attach.
#[derive(Debug)]
pub(crate) struct Stdin {
    pipe: Mutex<Option<tokio_pipe::Sender>>,
    /// `stdinOnce`: it ends with the first who attaches.
    once: bool,
}

impl Stdin {
    /// The end that is written to, if there is one.
    pub(crate) fn new(pipe: Option<tokio_pipe::Sender>, once: bool) -> Self {
        Self { pipe: Mutex::new(pipe), once }
    }

    /// An end for one who attaches; `None` if the program has no input any more.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub(crate) fn attach(&self) -> io::Result<Option<tokio_pipe::Sender>> {
        let mut pipe = lock(&self.pipe);
        if self.once {
            return Ok(pipe.take());
        }
        let copy =
            |pipe: &tokio_pipe::Sender| tokio_pipe::Sender::from_owned_fd(pipe.as_fd().try_clone_to_owned()?);
        pipe.as_ref().map(copy).transpose()
    }

    /// Ends the program's input once all who are attached have gone.
    pub(crate) fn close(&self) {
        lock(&self.pipe).take();
    }
}

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
    pub stdin: Stdin,
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn stdin(once: bool) -> (Stdin, tokio_pipe::Receiver) {
        let (sender, receiver) = tokio_pipe::pipe().unwrap();
        (Stdin::new(Some(sender), once), receiver)
    }

    #[tokio::test]
    async fn input_ends_with_the_first_who_attaches_only_if_the_container_says_so() {
        let (input, mut program) = stdin(true);
        input.attach().unwrap().unwrap().write_all(b"one").await.unwrap();
        let mut heard = Vec::new();
        program.read_to_end(&mut heard).await.unwrap();
        assert_eq!((heard.as_slice(), input.attach().unwrap().is_none()), (&b"one"[..], true));

        let (input, mut program) = stdin(false);
        for text in [b"one", b"two"] {
            input.attach().unwrap().unwrap().write_all(text).await.unwrap();
            let mut heard = [0; 3];
            program.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, text);
        }
        input.close();
        assert_eq!(program.read(&mut [0]).await.unwrap(), 0);
        assert!(input.attach().unwrap().is_none());
    }
}
