// SPDX-License-Identifier: Apache-2.0
//! One side only: is something allowed, is something denied, when a part of the request is given.

use std::net::IpAddr;

use ipnet::IpNet;
use meltemi_model::authz::{Attribute, StringMatch, ValueMatch};

use crate::error::QueryError;
use crate::proof::{Answer, Builder, Dimension, Hints, Layer, Need, PredicateId, Question, Space, Subject};
use crate::side::{Attached, Side, any, draft, side};
use crate::witness::{PLAINTEXT, Witness, claim_path};

/// A part of a request that is given: an attribute and its value, one of several; none when it is known to be absent.
pub(crate) type Given = (Attribute, Vec<ValueMatch>);

/// What a text is exactly.
pub(crate) fn exactly(attribute: Attribute, text: &str) -> Given {
    (attribute, vec![ValueMatch::String(StringMatch::Exact(text.into()))])
}

/// What an address is exactly.
pub(crate) fn address(attribute: Attribute, ip: IpAddr) -> Given {
    (attribute, vec![ValueMatch::Cidr(IpNet::from(ip))])
}

/// One of some ports.
pub(crate) fn ports(ports: impl IntoIterator<Item = u16>) -> Given {
    (Attribute::DestinationPort, ports.into_iter().map(ValueMatch::Port).collect())
}

/// The parts of a request that are not `open`.
pub(crate) fn given(request: &Witness, layer: Layer, open: &[Attribute]) -> Vec<Given> {
    let mut all = vec![match request.from.as_str() {
        PLAINTEXT => (Attribute::SourcePrincipal, Vec::new()),
        principal => exactly(Attribute::SourcePrincipal, principal),
    }];
    all.push(ports([request.port]));
    all.extend(request.source_ip.map(|ip| address(Attribute::SourceIp, ip)));
    all.extend(request.destination_ip.map(|ip| address(Attribute::DestinationIp, ip)));
    if layer == Layer::Request {
        let texts = [
            (Attribute::Method, &request.method),
            (Attribute::Path, &request.path),
            (Attribute::Host, &request.host),
            (Attribute::ConnectionSni, &request.sni),
            (Attribute::RequestPrincipal, &request.request_principal),
        ];
        for (attribute, text) in texts {
            all.extend(text.as_ref().map(|text| exactly(attribute, text)));
        }
        all.extend(request.remote_ip.map(|ip| address(Attribute::RemoteIp, ip)));
        // The host is given as such.
        let headers =
            request.headers.iter().filter(|(name, _)| !matches!(name.as_str(), "host" | ":authority"));
        all.extend(headers.map(|(name, value)| exactly(Attribute::Header(name.as_str().into()), value)));
        for (name, texts) in &request.claims {
            let claim = Attribute::RequestAuthClaim(claim_path(name).into());
            all.extend(texts.iter().map(|text| exactly(claim.clone(), text)));
        }
    }
    all.retain(|(attribute, _)| !open.contains(attribute));
    all
}

/// One side, ready to be asked.
pub(crate) struct Judge<'a> {
    pub(crate) space: Space,
    pub(crate) side: Side<'a>,
    /// What is given, as sets.
    cell: Vec<(u16, u32)>,
}

/// What a request may have or not have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Extra {
    /// A header.
    Header(String),
    /// A token: its principal and its claims.
    Token,
    /// A server name of TLS.
    ServerName,
}

impl Extra {
    fn of(dimension: &Dimension) -> Option<Self> {
        match dimension {
            Dimension::Claim(_) | Dimension::Attribute(Attribute::RequestPrincipal) => Some(Self::Token),
            Dimension::Attribute(Attribute::Header(name)) => Some(Self::Header(name.to_string())),
            Dimension::Attribute(Attribute::ConnectionSni) => Some(Self::ServerName),
            _ => None,
        }
    }
}

impl<'a> Judge<'a> {
    /// Of policies, with parts of the request given.
    ///
    /// # Errors
    /// The values combine in too many ways.
    pub(crate) fn new(
        policies: &'a [Attached],
        layer: Layer,
        given: &[Given],
        hints: &Hints,
    ) -> Result<Self, QueryError> {
        Self::with_known(policies, layer, given, hints, &[])
    }

    /// Also tells principals apart that no policy names.
    ///
    /// # Errors
    /// The values combine in too many ways.
    pub(crate) fn with_known(
        policies: &'a [Attached],
        layer: Layer,
        given: &[Given],
        hints: &Hints,
        known: &[String],
    ) -> Result<Self, QueryError> {
        let mut builder = Builder::default();
        let drafts = draft(&mut builder, policies, layer);
        let presence = [ValueMatch::String(StringMatch::Presence)];
        builder.predicate(Subject::Attribute(&Attribute::SourcePrincipal), &presence, &[]);
        for principal in known {
            let exact = [ValueMatch::String(StringMatch::Exact(principal.as_str().into()))];
            builder.predicate(Subject::Attribute(&Attribute::SourcePrincipal), &exact, &[]);
        }
        let told = given.iter().filter(|(_, values)| !values.is_empty());
        let present: Vec<PredicateId> =
            told.map(|(a, values)| builder.predicate(Subject::Attribute(a), values, &[])).collect();
        let mut space = builder.finish(hints)?;
        // What is given is one set of one dimension, and of a claim one text: there are no alternatives.
        let mut cell: Vec<(u16, u32)> =
            present.into_iter().flat_map(|p| space.predicate(p)).flatten().collect();
        for (attribute, _) in given.iter().filter(|(_, values)| values.is_empty()) {
            cell.extend(space.absent(Subject::Attribute(attribute)));
        }
        let side = side(&mut space, policies, drafts);
        if space.over {
            return Err(QueryError::TooComplex("claims".to_owned()));
        }
        Ok(Self { space, side, cell })
    }

    /// Also fixes every header, claim and name that policies ask for and that is not given to be absent, but for `open`.
    pub(crate) fn without_extras(&mut self, open: &[Extra]) {
        for place in 0..self.space.dims.len() {
            let fixed = self.cell.iter().any(|(given, _)| usize::from(*given) == place);
            let extra = Extra::of(&self.space.dims[place].key);
            if let Some(extra) = extra.filter(|extra| !fixed && !open.contains(extra)) {
                let absent = self.space.absent_at(place);
                debug_assert!(absent.is_some(), "{extra:?} can be absent");
                self.cell.extend(absent);
            }
        }
    }

    /// What policies ask for that a request may as well not have.
    pub(crate) fn extras(&self) -> Vec<Extra> {
        let mut all: Vec<Extra> = self.space.dims.iter().filter_map(|d| Extra::of(&d.key)).collect();
        all.sort();
        all.dedup();
        all
    }

    /// A request that is allowed.
    pub(crate) fn allowed(&self, more: &[(u16, u32)]) -> Answer {
        let needs = vec![Need::Cell(&self.cell), Need::Cell(more), any(&self.side.allow)];
        Question { needs, never: self.side.deny.iter().map(|i| &i.form).collect() }.answer(&self.space)
    }

    /// Whether an ALLOW rule is about a class of a dimension at all; saves a question.
    pub(crate) fn may(&self, item: usize, place: Option<usize>, class: usize) -> bool {
        let base = &self.side.allow[item].form.base;
        let asks = base.iter().find(|(dimension, _)| Some(usize::from(*dimension)) == place);
        asks.is_none_or(|(dimension, set)| self.space.dims[usize::from(*dimension)].set(*set).has(class))
    }

    /// A request that one ALLOW rule lets through.
    pub(crate) fn allowed_by(&self, item: usize, more: &[(u16, u32)]) -> Answer {
        let form = &self.side.allow[item].form;
        let needs = vec![Need::Cell(&self.cell), Need::Cell(more), Need::Form(form)];
        Question { needs, never: self.side.deny.iter().map(|i| &i.form).collect() }.answer(&self.space)
    }

    /// A request that is denied.
    pub(crate) fn denied(&self) -> Answer {
        let by_deny =
            Question { needs: vec![Need::Cell(&self.cell), any(&self.side.deny)], never: Vec::new() };
        match by_deny.answer(&self.space) {
            Answer::No => {}
            other => return other,
        }
        let never = self.side.allow.iter().map(|i| &i.form).collect();
        Question { needs: vec![Need::Cell(&self.cell)], never }.answer(&self.space)
    }

    /// A request that a CUSTOM rule asks about, and which one.
    pub(crate) fn asked(&self) -> Option<(usize, usize)> {
        let asked = self.side.custom.iter().find(|item| {
            let needs = vec![Need::Cell(&self.cell), Need::Form(&item.form)];
            Question { needs, never: Vec::new() }.answer(&self.space) != Answer::No
        });
        asked.and_then(|item| item.by)
    }
}
