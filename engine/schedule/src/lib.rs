//! When a schedule is due, and what becomes of each due time. Pure: "now" is an argument.
