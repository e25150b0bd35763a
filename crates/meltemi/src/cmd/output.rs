// SPDX-License-Identifier: Apache-2.0
//! The forms that `--output` offers. Each command offers those of one enum.

use clap::ValueEnum;

/// Text for people, or JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum TextOrJson {
    Text,
    Json,
}

/// A table for people, or JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum TableOrJson {
    Table,
    Json,
}

/// A form for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Document {
    Yaml,
    Json,
}

/// A short form for people, or the whole document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ShortOrDocument {
    Short,
    Json,
    Yaml,
}

/// A line for each finding, or a document with all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogOrDocument {
    Log,
    Json,
    Yaml,
}
