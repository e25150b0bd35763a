// SPDX-License-Identifier: Apache-2.0
//! User ids of a mesh that root starts: a part of the machine's that no other mesh of root has.
//!
//! Who has a part holds a socket whose name stands for it in the network namespace that the mesh is started from: the
//! kernel gives a name once and takes it back when the supervisor ends, however it ends, and no file is left behind.

use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use anyhow::{Context, bail};
use meltemi_runner::users::BLOCKS;

/// A part of the ids, this mesh's until it is dropped in all processes that have it.
#[derive(Debug)]
pub struct IdBlock {
    /// Which one.
    pub number: u32,
    _name: Option<UnixDatagram>,
}

impl IdBlock {
    /// Takes a free one. An ordinary user's mesh has the ids of that user, in no parts.
    ///
    /// # Errors
    /// All are taken.
    pub fn take() -> anyhow::Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            return Ok(Self { number: 0, _name: None });
        }
        Self::first_free("meltemi/user-ids")
    }

    fn first_free(prefix: &str) -> anyhow::Result<Self> {
        for number in 0..BLOCKS {
            let address = SocketAddr::from_abstract_name(format!("{prefix}/{number}"))?;
            match UnixDatagram::bind_addr(&address) {
                Ok(name) => return Ok(Self { number, _name: Some(name) }),
                Err(error) if error.kind() == ErrorKind::AddrInUse => {}
                Err(error) => return Err(error).context("taking a part of the machine's user ids"),
            }
        }
        bail!("{BLOCKS} meshes of root run on this machine, and there are user ids for no more: stop one")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_have_the_same_and_one_that_ends_gives_it_back() {
        let prefix = format!("meltemi/test-{}", std::process::id());
        let mut held: Vec<IdBlock> = (0..BLOCKS).map(|_| IdBlock::first_free(&prefix).unwrap()).collect();
        let numbers: Vec<u32> = held.iter().map(|block| block.number).collect();
        assert_eq!(numbers, (0..BLOCKS).collect::<Vec<_>>());
        let error = IdBlock::first_free(&prefix).unwrap_err().to_string();
        assert!(error.contains("16 meshes"), "{error}");
        held.remove(7);
        assert_eq!(IdBlock::first_free(&prefix).unwrap().number, 7);
    }
}
