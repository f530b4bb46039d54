#!/usr/bin/env python3
"""The job of runbooks/directory/updatetools.yaml as a plain script, for benchmarks to compare with.

It reads the directory page by page, reads the tools' files, compares with the two tables, and writes only the
differences, one transaction per table. It prints what it did as JSON. An empty answer of the directory ends it before
that table is touched. There is no plan, no guard, no journal and no undo: this is what such a script looks like.
"""

import argparse
import json
import os
import time
from urllib.parse import urlsplit

import ldap3
import pymysql
from ldap3.utils.conv import escape_filter_chars
from ldap3.utils.dn import parse_dn

SUFFIX = "dc=wikimedia,dc=org"
TOOL_COLUMNS = ["name", "id", "home", "description", "toolinfo", "maintainers"]
USER_COLUMNS = ["name", "id", "wikitech", "home"]


def search(connection, base, filter, attributes, page_size):
    """Every entry's attributes: a list of texts under each name."""
    found = connection.extend.standard.paged_search(
        base, filter, ldap3.SUBTREE, attributes=attributes, paged_size=page_size, generator=True
    )
    for entry in found:
        if entry["type"] == "searchResEntry":
            values = entry["raw_attributes"]
            yield {name: [value.decode() for value in values.get(name, [])] for name in attributes}


def first_value(dn):
    """`uid=a,ou=people,…` gives `a`."""
    if "\\" not in dn:
        return dn.split(",", 1)[0].split("=", 1)[1]
    value = parse_dn(dn)[0][1]
    return value.replace("\\2C", ",").replace("\\,", ",")


def read_text(home, *names):
    """The lines of the first of these files that can be read, with a space between."""
    for name in names:
        path = os.path.join(home, name)
        try:
            # A link to elsewhere would publish what the tool's owner may not read; a pipe would block for ever.
            if os.path.islink(path) and not os.path.realpath(path).startswith(os.path.realpath(home) + os.sep):
                continue
            if not os.path.isfile(path):
                continue
            with open(path, encoding="utf-8") as file:
                return " ".join(line.rstrip("\n") for line in file)
        except (OSError, UnicodeDecodeError):
            continue
    return ""


def tool_rows(connection, options):
    below = f"ou=servicegroups,{SUFFIX}"
    project = escape_filter_chars(options.project)
    groups = search(connection, below, f"(&(objectClass=posixGroup)(cn={project}.*))", ["cn", "member"], options.page_size)
    members = {group["cn"][0]: group["member"] for group in groups}
    accounts = search(
        connection,
        f"ou=people,{below}",
        f"(&(objectClass=posixAccount)(cn={project}.*))",
        ["cn", "uidNumber", "homeDirectory"],
        options.page_size,
    )
    for account in accounts:
        cn, home = account["cn"][0], account["homeDirectory"][0]
        folder = os.path.join(options.homes, os.path.basename(home))
        yield (
            cn[len(options.project) + 1 :],
            int(account["uidNumber"][0]),
            home,
            read_text(folder, ".description"),
            read_text(folder, "toolinfo.json", "public_html/toolinfo.json"),
            " ".join(first_value(dn) for dn in members.get(cn, [])),
        )


def user_rows(connection, options):
    group = f"cn=project-{escape_filter_chars(options.project)},ou=groups,{SUFFIX}"
    filter = f"(&(objectClass=posixAccount)(memberOf={group}))"
    attributes = ["uid", "cn", "uidNumber", "homeDirectory"]
    for person in search(connection, f"ou=people,{SUFFIX}", filter, attributes, options.page_size):
        yield (person["uid"][0], int(person["uidNumber"][0]), person["cn"][0], person["homeDirectory"][0])


def sync(database, table, columns, rows, stamp):
    """Makes the table hold exactly `rows`, whose first column is the key; `stamp` is set on the rows it writes."""
    wanted = {row[0]: row for row in rows}
    if not wanted:
        raise SystemExit(f"the directory has no {table}; nothing was changed")
    if len(wanted) != len(rows):
        raise SystemExit(f"the directory has two {table} of one name; nothing was changed")
    database.begin()
    with database.cursor() as cursor:
        cursor.execute(f"SELECT {', '.join(columns)} FROM {table}")
        present = {row[0]: row for row in cursor.fetchall()}
        deleted = [(name,) for name in present if name not in wanted]
        updated = [row for name, row in wanted.items() if name in present and present[name] != row]
        created = [row for name, row in wanted.items() if name not in present]
        stamps = list(stamp.values())
        if deleted:
            cursor.executemany(f"DELETE FROM {table} WHERE name = %s", deleted)
        if updated:
            columns_set = ", ".join(f"{column} = %s" for column in [*columns[1:], *stamp])
            values = [(*row[1:], *stamps, row[0]) for row in updated]
            cursor.executemany(f"UPDATE {table} SET {columns_set} WHERE name = %s", values)
        if created:
            all_columns = [*columns, *stamp]
            places = ", ".join(["%s"] * len(all_columns))
            statement = f"INSERT INTO {table} ({', '.join(all_columns)}) VALUES ({places})"
            cursor.executemany(statement, [(*row, *stamps) for row in created])
    database.commit()
    return {"rows": len(wanted), "created": len(created), "updated": len(updated), "deleted": len(deleted)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ldap", required=True, help="ldap://HOST:PORT")
    parser.add_argument("--bind-dn", help="anonymous when left out")
    parser.add_argument("--bind-password", default=os.environ.get("LDAP_PASSWORD"))
    parser.add_argument("--database", required=True, help="mysql://USER@HOST:PORT/NAME")
    parser.add_argument("--database-password", default=os.environ.get("DATABASE_PASSWORD", ""))
    parser.add_argument("--homes", required=True, help="the folder with one folder per tool")
    parser.add_argument("--project", default="tools")
    parser.add_argument("--page-size", type=int, default=500)
    options = parser.parse_args()

    server = ldap3.Server(options.ldap, get_info=ldap3.NONE, connect_timeout=1)
    url = urlsplit(options.database)
    database = pymysql.connect(
        host=url.hostname,
        port=url.port or 3306,
        user=url.username,
        password=options.database_password,
        database=url.path.lstrip("/"),
        charset="utf8mb4",
    )
    with ldap3.Connection(
        server, options.bind_dn, options.bind_password, auto_bind=True, read_only=True, check_names=False, raise_exceptions=True
    ) as connection:
        tools = sync(database, "tools", TOOL_COLUMNS, list(tool_rows(connection, options)), {"updated": int(time.time())})
        users = sync(database, "users", USER_COLUMNS, list(user_rows(connection, options)), {})
    print(json.dumps({"tools": tools, "users": users}))


if __name__ == "__main__":
    main()
