// SPDX-License-Identifier: Apache-2.0
//! Gateways: their classes, the objects that stand behind them, and their status.

pub mod certificates;
pub mod classes;
pub mod deployment;
pub mod facts;
pub mod status;
