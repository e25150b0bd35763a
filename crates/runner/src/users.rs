// SPDX-License-Identifier: Apache-2.0
//! User ids of Pods: which ids of this machine the ids of a Pod are.
//!
//! As root each Pod has 65,536 ids of its own. In a user namespace (an ordinary user's mesh) the ids that it has beside
//! its root are shared out in slices: the system's users, `nobody`, and those that the Pod names. Without such ids every
//! user of a Pod is the mesh's own user.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use meltemi_linux::users::{Extent, Setgroups};
use nix::fcntl::{Flock, FlockArg};

/// `nobody` and `nogroup`.
const NOBODY: u32 = 65_534;
/// Ids from 0 on that a Pod has as root.
const PLAIN: u32 = 65_536;
/// Ids from 0 on that a Pod has in a user namespace: Debian's system users.
const PLAIN_IN_SLICE: u32 = 1_000;
/// Most further ids that a Pod may name.
pub(crate) const MAX_NAMED: u32 = 64;
/// First id given to Pods as root: above those of people, of `/etc/subuid` and of most container runtimes.
const FIRST: u32 = 1 << 28;
/// Ids end before this one: some programs take them for signed numbers.
const END: u32 = 1 << 31;
/// Meshes of root on one machine that have ids of their own; each has enough for all Pods that its nodes may have.
pub const BLOCKS: u32 = 16;

/// The ids of a Pod, its own until this is dropped.
#[derive(Debug)]
pub struct Users {
    extents: Vec<Extent>,
    _slot: Option<Flock<File>>,
}

impl Users {
    /// Users of a Pod where there is one id only: every user of the Pod is the caller.
    pub fn single() -> Self {
        Self { extents: vec![Extent { inside: 0, outside: 0, count: 1 }], _slot: None }
    }

    /// The mapping of the Pod's user namespace.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Whether all users of the Pod are one.
    pub fn is_single(&self) -> bool {
        self.extents.iter().map(|e| e.count).sum::<u32>() == 1
    }

    /// Whether its processes may change their groups.
    pub fn setgroups(&self) -> Setgroups {
        if self.is_single() { Setgroups::Deny } else { Setgroups::Allow }
    }

    /// The id of this process's namespace that an id of the Pod is; an id that the Pod does not have is that of its root.
    pub fn outside(&self, inside: u32) -> u32 {
        let of = |id: u32| {
            let holds = |e: &&Extent| (e.inside..e.inside.saturating_add(e.count)).contains(&id);
            self.extents.iter().find(holds).map(|e| e.outside + (id - e.inside))
        };
        of(inside).or_else(|| of(0)).unwrap_or(0)
    }

    /// The first run of the Pod's groups, as this process's namespace counts them: first and last.
    pub(crate) fn first_run(&self) -> (u32, u32) {
        self.extents.first().map_or((0, 0), |e| (e.outside, e.outside + e.count - 1))
    }
}

/// Where the ids come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A slot for each Pod: its first id is `first` plus the slot's number times `stride`.
    Slots { first: u32, stride: u32, count: u32, plain: u32 },
    /// One id for all.
    Single,
}

/// Shares ids out among the Pods of all nodes of a mesh.
#[derive(Debug)]
pub struct Supply {
    kind: Kind,
    locks: PathBuf,
    next: AtomicU32,
}

impl Supply {
    /// Shares out what the calling process's user namespace has. `locks`: a folder common to all nodes, where a file
    /// that is locked stands for a slot that is used. `block`: which part of the machine's ids it takes as root, so that no
    /// two meshes have an id in common; below [`BLOCKS`].
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn new(locks: &Path, block: u32) -> io::Result<Self> {
        let kind = kind(&meltemi_linux::users::available()?, block % BLOCKS);
        Ok(Self { kind, locks: locks.to_owned(), next: AtomicU32::new(0) })
    }

    /// Ids for a Pod that has these among others. Without a free slot where slots are few: the single one.
    ///
    /// # Errors
    /// It names too many, the folder cannot be made, or (as root) no slot is free.
    pub fn take(&self, named: &BTreeSet<u32>) -> io::Result<Users> {
        let Kind::Slots { first, stride, count, plain } = self.kind else { return Ok(Users::single()) };
        fs::create_dir_all(&self.locks)?;
        for _ in 0..count {
            let slot = self.next.fetch_add(1, Ordering::Relaxed) % count;
            let Some(lock) = self.lock(slot)? else { continue };
            let extents = extents(first + slot * stride, plain, named)?;
            return Ok(Users { extents, _slot: Some(lock) });
        }
        if plain == PLAIN {
            return Err(io::Error::other("no user ids left on this machine"));
        }
        Ok(Users::single())
    }

    fn lock(&self, slot: u32) -> io::Result<Option<Flock<File>>> {
        let path = self.locks.join(slot.to_string());
        let file = File::options().create(true).truncate(false).write(true).open(path)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => Err(error.into()),
        }
    }
}

/// What ranges of ids, as `(first, count)`, are good for. A block is one of the whole only: slices are of one person's.
fn kind(available: &[(u32, u32)], block: u32) -> Kind {
    let whole = available.iter().any(|(first, count)| *first <= FIRST && first.saturating_add(*count) >= END);
    if whole {
        let stride = PLAIN + MAX_NAMED;
        let count = (END - FIRST) / stride / BLOCKS;
        return Kind::Slots { first: FIRST + block * count * stride, stride, count, plain: PLAIN };
    }
    // The namespace's root is the person that the mesh runs as: no Pod's.
    let spare = available.iter().map(|(first, count)| match first {
        0 => (1, count.saturating_sub(1)),
        _ => (*first, *count),
    });
    let stride = PLAIN_IN_SLICE + MAX_NAMED;
    match spare.max_by_key(|(_, count)| *count) {
        Some((first, count)) if count >= stride => {
            Kind::Slots { first, stride, count: count / stride, plain: PLAIN_IN_SLICE }
        }
        _ => Kind::Single,
    }
}

/// `plain` ids from 0 on and each of the named ones, from `first` on.
fn extents(first: u32, plain: u32, named: &BTreeSet<u32>) -> io::Result<Vec<Extent>> {
    let mut extents = vec![Extent { inside: 0, outside: first, count: plain }];
    let further: BTreeSet<u32> = named.iter().copied().chain([NOBODY]).filter(|id| *id >= plain).collect();
    for (id, outside) in further.iter().zip(first + plain..first + plain + MAX_NAMED) {
        extents.push(Extent { inside: *id, outside, count: 1 });
    }
    if extents.len() != further.len() + 1 {
        return Err(io::Error::other(format!(
            "the Pod names {} users and groups above {plain}; at most {MAX_NAMED} are possible",
            further.len()
        )));
    }
    Ok(extents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_from_what_there_is() {
        let stride = PLAIN + MAX_NAMED;
        let count = (END - FIRST) / stride / BLOCKS;
        // As many Pods as sixteen nodes may have.
        assert!(count >= 16 * 110, "{count}");
        let whole = Kind::Slots { first: FIRST, stride, count, plain: PLAIN };
        let mine = |available: &[(u32, u32)]| kind(available, 0);
        assert_eq!(mine(&[(0, u32::MAX)]), whole);
        // No two meshes of root have an id in common, and none an id beyond the end.
        let mut end = FIRST;
        for block in 0..BLOCKS {
            let Kind::Slots { first, stride, count, .. } = kind(&[(0, u32::MAX)], block) else { panic!() };
            assert!(first >= end, "{block}");
            end = first + count * stride;
        }
        assert!(end <= END);
        assert_eq!(mine(&[(0, 1)]), Kind::Single);
        assert_eq!(mine(&[(0, 1), (1, 100)]), Kind::Single);
        let slices = Kind::Slots { first: 1, stride: 1064, count: 61, plain: 1000 };
        assert_eq!(mine(&[(0, 1), (1, 65_536)]), slices);
        assert_eq!(mine(&[(0, 65_537)]), slices);
        assert_eq!(mine(&[]), Kind::Single);
    }

    #[test]
    fn no_two_pods_have_an_id_in_common_and_none_has_the_meshs_own() {
        for kind in [kind(&[(0, u32::MAX)], 3), kind(&[(0, 65_537)], 0)] {
            let locks = tempfile::tempdir().unwrap();
            let nodes: Vec<Supply> = (0..2)
                .map(|_| Supply { kind, locks: locks.path().to_owned(), next: AtomicU32::new(0) })
                .collect();
            let named = BTreeSet::from([1337, 100_000, NOBODY]);
            let pods: Vec<Users> = (0..30).map(|i| nodes[i % 2].take(&named).unwrap()).collect();
            let mut seen = BTreeSet::new();
            for pod in &pods {
                assert!(!pod.is_single());
                for extent in pod.extents() {
                    assert!(extent.outside > 0);
                    for id in extent.outside..extent.outside + extent.count {
                        assert!(seen.insert(id), "{id} is given twice");
                    }
                }
                for id in [0, 33, 1337, 100_000, NOBODY] {
                    let outside = pod.outside(id);
                    assert!(
                        pod.extents()
                            .iter()
                            .any(|e| e.inside <= id && e.outside + (id - e.inside) == outside)
                    );
                }
            }
            let count = pods.len();
            drop(pods);
            assert!((0..count).all(|_| nodes[0].take(&named).is_ok_and(|users| !users.is_single())));
        }
    }

    #[test]
    fn too_many_named_ids_are_an_error() {
        let named = (70_000..70_064).collect();
        assert!(extents(FIRST, PLAIN, &named).is_ok());
        assert!(extents(FIRST, PLAIN, &(70_000..70_065).collect()).is_err());
        assert!(extents(1, PLAIN_IN_SLICE, &named).is_err());
    }
}
