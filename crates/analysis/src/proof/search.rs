// SPDX-License-Identifier: Apache-2.0
//! Is there a request that has what is needed and nothing of what is excluded? Splits sets of classes until the answer
//! is plain: what has one way left is taken at once, else one set is split in two.

use super::bits::Bits;
use super::form::Form;
use super::space::{Cell, Space};

/// Looks at forms before a question is given up as too hard.
const WORK: usize = 30_000_000;

/// What has to hold.
#[derive(Clone, Debug)]
pub(crate) enum Need<'a> {
    /// This.
    Form(&'a Form),
    /// One of these.
    Any(Vec<&'a Form>),
    /// These sets.
    Cell(&'a [(u16, u32)]),
}

/// A question.
#[derive(Clone, Debug)]
pub(crate) struct Question<'a> {
    /// Everything here has to hold.
    pub(crate) needs: Vec<Need<'a>>,
    /// None of these may hold.
    pub(crate) never: Vec<&'a Form>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// There is one: its class in each dimension.
    Yes(Vec<usize>),
    /// There is none: proven.
    No,
    /// It was not found out.
    GaveUp,
}

#[derive(Clone)]
enum Open<'a> {
    Clause(&'a [Cell]),
    Any(Vec<&'a Form>),
}

#[derive(Clone)]
struct State<'a> {
    sets: Vec<Bits>,
    open: Vec<Open<'a>>,
    never: Vec<&'a Form>,
}

/// A contradiction.
struct Contradiction;

/// How a form stands to the sets.
enum Standing {
    Never,
    Always,
    /// The sets that are not decided, when only one decision is left for each.
    Depends(Vec<(u16, u32)>),
}

impl<'a> Question<'a> {
    /// The same question about these sets only.
    pub(crate) fn with<'b>(&self, cell: &'b [(u16, u32)]) -> Question<'b>
    where
        'a: 'b,
    {
        let mut needs: Vec<Need<'b>> = self.needs.clone();
        needs.push(Need::Cell(cell));
        Question { needs, never: self.never.clone() }
    }
}

impl Question<'_> {
    /// Drops from what is excluded what has nothing in common with a form that is needed.
    pub(crate) fn forget(&mut self, space: &Space, needed: &Form) {
        let apart = |a: &Cell, b: &Cell| {
            a.iter().any(|(d, s)| {
                let dim = &space.dims[usize::from(*d)];
                b.iter().any(|(other, t)| other == d && !dim.set(*s).meets(dim.set(*t)))
            })
        };
        let alternatives =
            |form: &Form| form.clauses.iter().any(|c| c.iter().all(|cell| apart(cell, &needed.base)));
        self.never.retain(|form| !apart(&form.base, &needed.base) && !alternatives(form));
    }

    /// Answers.
    pub(crate) fn answer(&self, space: &Space) -> Answer {
        let mut all = WORK;
        self.answer_within(space, &mut all)
    }

    /// Answers, with what is left of the work for several questions.
    pub(crate) fn answer_within(&self, space: &Space, left: &mut usize) -> Answer {
        let mut work = 0;
        let answer = self.search(space, &mut work, WORK.min(*left));
        *left = left.saturating_sub(work);
        answer
    }

    fn search(&self, space: &Space, work: &mut usize, most: usize) -> Answer {
        let Ok(first) = self.start(space) else { return Answer::No };
        let mut stack = vec![first];
        while let Some(mut state) = stack.pop() {
            *work += 1 + state.never.len() + state.open.len();
            if *work > most {
                return Answer::GaveUp;
            }
            if state.narrow(space, work).is_err() {
                continue;
            }
            let Some((dimension, set, inside)) = state.split(space) else {
                return match state.sets.iter().map(Bits::first).collect() {
                    Some(classes) => Answer::Yes(classes),
                    None => Answer::No,
                };
            };
            let set = space.dims[usize::from(dimension)].set(set);
            let mut other = state.clone();
            state.sets[usize::from(dimension)].keep(set);
            other.sets[usize::from(dimension)].remove(set);
            // The stack is LIFO: push the more promising half last.
            stack.extend(if inside { [other, state] } else { [state, other] });
        }
        Answer::No
    }

    fn start<'a>(&'a self, space: &Space) -> Result<State<'a>, Contradiction> {
        let sets = space.dims.iter().map(|d| d.all.clone()).collect();
        let mut state = State { sets, open: Vec::new(), never: self.never.clone() };
        for need in &self.needs {
            match need {
                Need::Form(form) => state.take(space, form)?,
                Need::Cell(cell) => state.keep(space, cell)?,
                Need::Any(forms) => state.open.push(Open::Any(forms.clone())),
            }
        }
        Ok(state)
    }
}

impl<'a> State<'a> {
    fn meets(&self, space: &Space, (dimension, set): (u16, u32)) -> bool {
        self.sets[usize::from(dimension)].meets(space.dims[usize::from(dimension)].set(set))
    }

    fn within(&self, space: &Space, (dimension, set): (u16, u32)) -> bool {
        self.sets[usize::from(dimension)].within(space.dims[usize::from(dimension)].set(set))
    }

    fn alive(&self, space: &Space, cell: &Cell) -> bool {
        cell.iter().all(|p| self.meets(space, *p))
    }

    fn holds(&self, space: &Space, cell: &Cell) -> bool {
        cell.iter().all(|p| self.within(space, *p))
    }

    fn keep(&mut self, space: &Space, cell: &[(u16, u32)]) -> Result<(), Contradiction> {
        for (dimension, set) in cell {
            let own = &mut self.sets[usize::from(*dimension)];
            own.keep(space.dims[usize::from(*dimension)].set(*set));
            if own.is_empty() {
                return Err(Contradiction);
            }
        }
        Ok(())
    }

    fn take(&mut self, space: &Space, form: &'a Form) -> Result<(), Contradiction> {
        self.keep(space, &form.base)?;
        self.open.extend(form.clauses.iter().map(|c| Open::Clause(c)));
        Ok(())
    }

    fn possible(&self, space: &Space, form: &Form) -> bool {
        self.alive(space, &form.base)
            && form.clauses.iter().all(|c| c.iter().any(|cell| self.alive(space, cell)))
    }

    fn certain(&self, space: &Space, form: &Form) -> bool {
        self.holds(space, &form.base)
            && form.clauses.iter().all(|c| c.iter().any(|cell| self.holds(space, cell)))
    }

    /// Takes everything that has only one way left.
    fn narrow(&mut self, space: &Space, work: &mut usize) -> Result<(), Contradiction> {
        if self.sets.iter().any(Bits::is_empty) {
            return Err(Contradiction);
        }
        loop {
            *work += self.open.len() + self.never.len();
            let mut changed = false;
            for need in std::mem::take(&mut self.open) {
                changed |= self.need(space, need)?;
            }
            let mut index = 0;
            while index < self.never.len() {
                let form = self.never[index];
                match self.standing(space, form) {
                    Standing::Never => {
                        self.never.swap_remove(index);
                        continue;
                    }
                    Standing::Always => return Err(Contradiction),
                    Standing::Depends(sets) => {
                        for (dimension, set) in sets {
                            let own = &mut self.sets[usize::from(dimension)];
                            own.remove(space.dims[usize::from(dimension)].set(set));
                            if own.is_empty() {
                                return Err(Contradiction);
                            }
                            changed = true;
                        }
                    }
                }
                index += 1;
            }
            if !changed {
                return Ok(());
            }
        }
    }

    /// Looks at a need again; whether something changed.
    fn need(&mut self, space: &Space, need: Open<'a>) -> Result<bool, Contradiction> {
        match need {
            Open::Clause(cells) => {
                if cells.iter().any(|c| self.holds(space, c)) {
                    return Ok(false);
                }
                let mut alive = cells.iter().filter(|c| self.alive(space, c));
                match (alive.next(), alive.next()) {
                    (None, _) => Err(Contradiction),
                    (Some(only), None) => self.keep(space, only).map(|()| true),
                    _ => {
                        self.open.push(Open::Clause(cells));
                        Ok(false)
                    }
                }
            }
            Open::Any(mut forms) => {
                forms.retain(|f| self.possible(space, f));
                if forms.iter().any(|f| self.certain(space, f)) {
                    return Ok(false);
                }
                match &*forms {
                    [] => Err(Contradiction),
                    [only] => self.take(space, only).map(|()| true),
                    _ => {
                        self.open.push(Open::Any(forms));
                        Ok(false)
                    }
                }
            }
        }
    }

    fn standing(&self, space: &Space, form: &Form) -> Standing {
        let mut depends = Vec::new();
        for p in &form.base {
            if !self.meets(space, *p) {
                return Standing::Never;
            }
            if !self.within(space, *p) {
                depends.push(*p);
            }
        }
        let undecided = depends.len();
        let mut clauses = 0;
        for clause in &form.clauses {
            if !clause.iter().any(|c| self.alive(space, c)) {
                return Standing::Never;
            }
            if clause.iter().any(|c| self.holds(space, c)) {
                continue;
            }
            clauses += 1;
            if clauses == 1 && undecided == 0 {
                for cell in clause.iter().filter(|c| self.alive(space, c)) {
                    let mut rest = cell.iter().filter(|p| !self.within(space, **p));
                    if let (Some(only), None) = (rest.next(), rest.next()) {
                        depends.push(*only);
                    }
                }
            }
        }
        match (undecided, clauses) {
            (0, 0) => Standing::Always,
            (1, 0) | (0, 1) => Standing::Depends(depends),
            _ => Standing::Depends(Vec::new()),
        }
    }

    /// A set to split by, and whether to look inside of it first; none when everything holds.
    fn split(&self, space: &Space) -> Option<(u16, u32, bool)> {
        let cell = |cell: &Cell| cell.iter().copied().find(|p| !self.within(space, *p));
        for need in &self.open {
            let found = match need {
                Open::Clause(cells) => cells.iter().filter(|c| self.alive(space, c)).find_map(cell),
                Open::Any(forms) => forms.iter().find_map(|f| self.undecided(space, f)),
            };
            if let Some((dimension, set)) = found {
                return Some((dimension, set, true));
            }
        }
        let (dimension, set) = self.never.iter().find_map(|f| self.undecided(space, f))?;
        Some((dimension, set, false))
    }

    fn undecided(&self, space: &Space, form: &Form) -> Option<(u16, u32)> {
        let open = |p: &(u16, u32)| !self.within(space, *p);
        form.base.iter().copied().find(open).or_else(|| {
            let clauses = form.clauses.iter().filter(|c| !c.iter().any(|cell| self.holds(space, cell)));
            let mut cells = clauses.flatten().filter(|cell| self.alive(space, cell));
            cells.find_map(|cell| cell.iter().copied().find(open))
        })
    }
}
