package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"isle"
)

// roleQuery says what stands in the way of a role being a boundary: what it is
// or may become that no rule of the gateway holds. Every name is written with
// its schema: the session's search path is the server's.
const roleQuery = `select pg_catalog.current_setting('is_superuser'), session_user::pg_catalog.text, current_user::pg_catalog.text,
 coalesce((select pg_catalog.string_agg(r.rolname::pg_catalog.text operator(pg_catalog.||) ' ('::pg_catalog.text operator(pg_catalog.||)
  case when r.rolsuper then 'superuser' when r.rolcreaterole then 'createrole' when r.rolreplication then 'replication' when r.rolbypassrls then 'bypassrls'
   else 'it reaches the server''s files and programs' end::pg_catalog.text operator(pg_catalog.||) ')'::pg_catalog.text, ', '::pg_catalog.text)
 from pg_catalog.pg_roles r where pg_catalog.pg_has_role(session_user, r.oid, 'MEMBER'::pg_catalog.text)
  and (r.rolsuper or r.rolcreaterole or r.rolreplication or r.rolbypassrls
   or r.rolname operator(pg_catalog.=) any (array['pg_execute_server_program','pg_read_server_files','pg_write_server_files']::pg_catalog.name[]))), ''),
 pg_catalog.current_setting('search_path'), pg_catalog.current_setting('standard_conforming_strings'), pg_catalog.current_setting('server_encoding')`

// A role is what a login turned out to be.
type role struct {
	name       string
	searchPath string
}

// checkRole asks the server whom it let in, and refuses one that the gateway's
// rules can't hold: a superuser, or a role that can become what is more.
func (p *Protocol) checkRole(ctx context.Context, u *upstream, connection string) (role, error) {
	ctx, cancel := context.WithTimeout(ctx, p.config.Handshake)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { u.conn.SetDeadline(time.Unix(1, 0)) })
	rows, err := u.query(roleQuery)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil && (len(rows) != 1 || len(rows[0]) != 7) {
		err = errors.New("the answer has another shape")
	}
	if err != nil {
		return role{}, isle.Errorf(isle.Unavailable, "connection %s: could not ask the server behind what its role may: %w", connection, err)
	}
	r := rows[0]
	super, session, current, more := r[0], r[1], r[2], r[3]
	var why string
	switch {
	case super == "on":
		why = "is a superuser"
	case session != current:
		why = fmt.Sprintf("acts as %q from the start, which RESET ROLE undoes", current)
	case more != "":
		why = "is, or can become: " + more
	}
	if why != "" {
		return role{}, isle.Errorf(isle.Refused, "connection %s logs in as role %q, which %s: no rule of the gateway would hold it", connection, session, why).
			WithHint("let it log in as a role of its own with only what it needs: create role %s login password '…' nosuperuser nocreaterole nobypassrls; grant select on … to %s", strings.ReplaceAll(connection, "-", "_"), strings.ReplaceAll(connection, "-", "_"))
	}
	return role{name: session, searchPath: r[4]}, nil
}

// serverSaid is an error that the server answered with; the connection goes on.
type serverSaid struct{ error }

// query runs a statement of our own before the client is let in, and returns its
// rows as text.
func (u *upstream) query(sql string) ([][]string, error) {
	packet, err := (&pgproto3.Query{String: sql}).Encode(nil)
	if err != nil {
		return nil, err
	}
	return u.exchange(packet)
}

// exchange sends messages of our own and reads until the server is ready.
func (u *upstream) exchange(packet []byte) ([][]string, error) {
	if _, err := u.conn.Write(packet); err != nil {
		return nil, err
	}
	var rows [][]string
	var failure error
	for size := 0; ; {
		kind, body, err := nextMessage(u.in, 1<<20)
		if err != nil {
			return nil, err
		}
		switch kind {
		case 'D':
			if size += len(body); size > 8<<20 {
				return nil, errors.New("the answer is too long")
			}
			row, err := textRow(body)
			if err != nil {
				return nil, err
			}
			rows = append(rows, row)
		case 'E':
			var e pgproto3.ErrorResponse
			if err := e.Decode(body); err != nil {
				return nil, err
			}
			failure = serverSaid{fmt.Errorf("%s (%s)", e.Message, e.Code)}
		case 'Z':
			return rows, failure
		case 'S':
			if err := u.learn(kind, body); err != nil {
				return nil, err
			}
		case 'T', 'C', 'N', 'A', 'I', '1', '2', 'n':
		default:
			return nil, fmt.Errorf("a message of type %q", kind)
		}
	}
}

// textRow is a DataRow's values; null is "".
func textRow(body []byte) ([]string, error) {
	var d pgproto3.DataRow
	if err := d.Decode(body); err != nil {
		return nil, err
	}
	row := make([]string, len(d.Values))
	for i, v := range d.Values {
		row[i] = string(v)
	}
	return row, nil
}
