//! `farrier audit`: who did what through the service.

use clap::Args;
use farrier_server::wire::{ActPage, ActView};
use farrier_store::ActFilter;

use super::{App, Problem};
use crate::client;
use crate::exit::Exit;
use crate::render::{self, table};
use crate::stores;

#[derive(Debug, Args)]
pub(super) struct Audit {
    /// Only what they did.
    #[arg(long, value_name = "NAME")]
    who: Option<String>,
    /// Only what was about this run (its whole id) or runbook.
    #[arg(long, value_name = "NAME")]
    object: Option<String>,
    /// At most so many.
    #[arg(long, short = 'n', default_value_t = 50)]
    limit: usize,
}

impl Audit {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        let acts: Vec<ActView> = if let Some(client) = client::named(app)? {
            client.get::<ActPage>(&self.query()).await?.acts
        } else {
            let filter = ActFilter {
                who: self.who.clone(),
                object: self.object.clone(),
                before: None,
                limit: Some(self.limit),
            };
            let mut acts = Vec::new();
            for store in stores::read_all(app, &app.workspace()?).await? {
                acts.extend(store.acts(&filter).await?);
            }
            acts.sort_by_key(|act| std::cmp::Reverse((act.at, act.id)));
            acts.truncate(self.limit);
            acts.into_iter().map(ActView::from).collect()
        };
        if render::data(app.output, &acts)? {
            return Ok(Exit::Ok);
        }
        let rows: Vec<Vec<String>> = acts
            .into_iter()
            .map(|act| {
                let at = act.at.get(..19).unwrap_or(&act.at).replace('T', " ");
                vec![at, act.who, act.via, act.outcome, act.what, act.object, act.detail]
            })
            .collect();
        let heads = ["AT (UTC)", "WHO", "VIA", "OUTCOME", "WHAT", "ABOUT", "FROM"];
        render::line(&table::draw(&heads, &rows))?;
        Ok(Exit::Ok)
    }

    fn query(&self) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.append_pair("limit", &self.limit.to_string());
        for (name, value) in [("who", &self.who), ("object", &self.object)] {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        format!("/api/v1/audit?{}", query.finish())
    }
}
