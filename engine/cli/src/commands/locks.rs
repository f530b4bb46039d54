//! `farrier locks`: who holds which lock, and who waits for it.

use clap::Args;
use farrier_server::wire::LockView;
use farrier_store::{SqliteStore, Store};

use super::{App, Problem};
use crate::exit::Exit;
use crate::render::{self, table};
use crate::stores;

#[derive(Debug, Args)]
pub(super) struct Locks {}

impl Locks {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        let mut views = Vec::new();
        for store in stores::read_all(app, &app.workspace()?).await? {
            views.extend(tickets(&store).await?);
        }
        if render::data(app.output, &views)? {
            return Ok(Exit::Ok);
        }
        let rows: Vec<Vec<String>> = views
            .into_iter()
            .map(|view| {
                let since = view.since[..19].replace('T', " ");
                let step = view.step.unwrap_or_default();
                vec![view.lock, view.state, view.run[..13].to_owned(), view.title, step, since]
            })
            .collect();
        render::line(&table::draw(&["LOCK", "STATE", "RUN", "TITLE", "STEP", "SINCE (UTC)"], &rows))?;
        Ok(Exit::Ok)
    }
}

async fn tickets(store: &SqliteStore) -> Result<Vec<LockView>, Problem> {
    let mut views = Vec::new();
    for ticket in store.tickets(None).await? {
        let title = store.run(ticket.run).await?.map_or_else(String::new, |row| row.title.to_string());
        views.push(LockView::of(ticket, title));
    }
    Ok(views)
}
