// SPDX-License-Identifier: Apache-2.0
//! The whole system: meshes on this machine, judged from outside by kubectl, curl, openssl and a browser.

#![expect(clippy::unwrap_used, reason = "tests")]

mod browser;
mod capture;
mod cluster;
mod control;
mod databases;
mod documents;
mod faults;
mod limits;
mod machine;
mod moves;
mod open;
mod outside;
mod pods;
mod recovery;
mod replicas;
mod rollouts;
mod starts;
mod stateful;
mod walkthrough;
mod waypoint_for;
