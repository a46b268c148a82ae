package postgres

import (
	"errors"
	"strings"

	"github.com/jackc/pgx/v5/pgproto3"

	"isle"
	"isle/internal/gateway"
)

// The SQLSTATEs that clients are answered with (PostgreSQL, appendix A). The
// class IS is the gateway's own: the SQL standard leaves classes that begin with
// I to Z to implementations.
const (
	stateRefused   = "42501" // insufficient_privilege
	stateHeld      = "IS001" // it needs an approval, and does not wait for it here
	stateCanceled  = "57014" // query_canceled
	stateEnded     = "57P01" // admin_shutdown
	stateAway      = "08006" // connection_failure: the server behind ended it
	stateCannot    = "08001" // sqlclient_unable_to_establish_sqlconnection
	stateNoLog     = "58030" // io_error: what must be written can't be
	stateLimit     = "54000" // program_limit_exceeded
	stateFull      = "53400" // configuration_limit_exceeded
	stateProtocol  = "08P01" // protocol_violation
	stateFeature   = "0A000" // feature_not_supported
	stateParameter = "22023" // invalid_parameter_value
	stateDatabase  = "3D000" // invalid_catalog_name
	stateEntry     = "28000" // invalid_authorization_specification
	statePassword  = "28P01" // invalid_password
	stateStatement = "26000" // invalid_sql_statement_name
	statePortal    = "34000" // invalid_cursor_name
	stateName      = "42622" // name_too_long
	stateInternal  = "XX000"
)

// A refusal is an error as the client is told it.
type refusal struct {
	State, Message, Detail, Hint string
}

// Error implements error.
// Error is the message without the name that it begins with for clients: on the
// terminal and in the log it stands behind ours already.
func (r *refusal) Error() string { return strings.TrimPrefix(r.Message, "isle: ") }

// frame appends the ErrorResponse. A FATAL one ends the connection.
func (r *refusal) frame(dst []byte, severity string) []byte {
	m := pgproto3.ErrorResponse{Severity: severity, SeverityUnlocalized: severity, Code: r.State,
		Message: clip(r.Message), Detail: clip(r.Detail), Hint: clip(r.Hint), Routine: "isle"}
	out, err := m.Encode(dst)
	if err != nil {
		return dst
	}
	return out
}

// clip keeps what is told to a client within what clients show, and without the
// byte that ends a field.
func clip(s string) string {
	const most = 8 << 10
	if len(s) > most {
		s = s[:most] + "…"
	}
	for i := 0; i < len(s); i++ {
		if s[i] == 0 {
			b := []byte(s)
			for j := range b {
				if b[j] == 0 {
					b[j] = ' '
				}
			}
			return string(b)
		}
	}
	return s
}

// refuse tells an error of a statement in PostgreSQL's words.
func refuse(err error) *refusal {
	var r *refusal
	if errors.As(err, &r) {
		return r
	}
	var e *isle.Error
	if err = gateway.Told(err); !errors.As(err, &e) {
		return &refusal{State: stateInternal, Message: "isle: " + err.Error()}
	}
	message := *e
	message.Hint = ""
	return &refusal{State: stateOf(e.Code), Message: "isle: " + message.Error(), Hint: e.Hint}
}

func stateOf(c isle.Code) string {
	switch c {
	case isle.Refused:
		return stateRefused
	case isle.Held:
		return stateHeld
	case isle.Unavailable:
		return stateNoLog
	case isle.Exhausted:
		return stateFull
	case isle.Invalid:
		return stateParameter
	case isle.NotFound:
		return stateDatabase
	}
	return stateInternal
}

// turnAway tells an error that comes before a session is there.
func turnAway(err error) *refusal {
	r := *refuse(err)
	switch r.State {
	case stateRefused:
		r.State = stateEntry
	case stateNoLog:
		r.State = stateCannot
	}
	return &r
}
