package postgres

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"isle/internal/policy"
)

// harmless are the settings that a client may begin with: they say how values
// look and how long to wait, not what a statement means or may do.
func harmless(name string) bool {
	switch name {
	case "application_name", "client_encoding", "datestyle", "timezone", "intervalstyle",
		"extra_float_digits", "bytea_output", "client_min_messages", "geqo", "jit",
		"default_transaction_isolation", "default_transaction_deferrable", "default_transaction_read_only",
		"statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout",
		"search_path", "standard_conforming_strings", "xmloption", "plan_cache_mode", "tcp_keepalives_idle",
		"tcp_keepalives_interval", "tcp_keepalives_count", "tcp_user_timeout", "client_connection_check_interval":
		return true
	}
	return false
}

// parameters are the settings that the server behind is asked for: what the
// client asked for where that is harmless, and what the connection says. What
// can't be granted is refused, since a client that goes on without would be
// answered wrongly.
func parameters(c policy.Connection, client map[string]string) (map[string]string, error) {
	asked := make(map[string]string)
	for name, value := range client {
		switch name {
		case "user", "database":
		case "replication":
			if !slices.Contains([]string{"false", "off", "no", "0", ""}, strings.ToLower(value)) {
				return nil, &refusal{State: stateFeature, Message: "isle: replication connections do not pass the gateway"}
			}
		case "options":
			if err := cutOptions(value, asked); err != nil {
				return nil, err
			}
		default:
			asked[strings.ToLower(name)] = value
		}
	}
	out := map[string]string{"client_encoding": "UTF8", "application_name": c.Name}
	for name, value := range asked {
		if err := checkSetting(c, name, value); err != nil {
			return nil, err
		}
		out[name] = value
	}
	if c.ReadOnly {
		out["default_transaction_read_only"] = "on"
	}
	if c.StatementTimeout > 0 && out["statement_timeout"] == "" {
		out["statement_timeout"] = strconv.FormatInt(max(c.StatementTimeout.Milliseconds(), 1), 10)
	}
	return out, nil
}

// database is the one that the server behind is asked for. A client names its
// connection, or none: then libpq says its user's name. Only where the connection
// leaves the database open, the client may choose.
func database(c policy.Connection, client map[string]string) (string, error) {
	d := client["database"]
	named := d != "" && d != c.Name && d != client["user"]
	switch {
	case !named || d == c.Database:
		return c.Database, nil
	case c.Database == "":
		return d, nil
	}
	return "", &refusal{State: stateDatabase, Message: "isle: connection " + c.Name + " does not lead to database " + strconv.Quote(clip(d)),
		Hint: "name no database, or " + c.Name + ": the connection says which one it is"}
}

func checkSetting(c policy.Connection, name, value string) error {
	no := func(why string) error {
		return &refusal{State: stateParameter, Message: "isle: a session of " + c.Name + " can't begin with " + name + "=" + strconv.Quote(clip(value)) + ": " + why,
			Hint: "leave it out of the connection's options"}
	}
	if !harmless(name) {
		return no("it is not among the settings that a client may begin with")
	}
	switch name {
	case "client_encoding":
		if !readable(value) {
			return no("statements are read as UTF-8 only")
		}
	case "standard_conforming_strings":
		if !slices.Contains([]string{"on", "true", "yes", "1"}, strings.ToLower(value)) {
			return no("statements are read by the standard's rules")
		}
	case "search_path":
		if strings.Contains(strings.ToLower(value), "pg_") {
			return no("a schema of PostgreSQL's own in it would change what names mean")
		}
	case "statement_timeout":
		ms, ok := milliseconds(value)
		if c.StatementTimeout > 0 && (!ok || ms == 0 || ms > c.StatementTimeout.Milliseconds()) {
			return no("the connection bounds it at " + c.StatementTimeout.String())
		}
	case "default_transaction_read_only":
		if c.ReadOnly && !slices.Contains([]string{"on", "true", "yes", "1"}, strings.ToLower(value)) {
			return no("the connection is read-only")
		}
	}
	return nil
}

// readable reports whether statements in a client encoding can be read: those
// in which an ASCII byte is always that character and nothing is converted.
func readable(encoding string) bool {
	var b strings.Builder
	for _, c := range strings.ToLower(encoding) {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
			b.WriteRune(c)
		}
	}
	switch b.String() {
	case "utf8", "unicode", "sqlascii":
		return true
	}
	return false
}

// milliseconds reads a time as PostgreSQL's settings have it.
func milliseconds(s string) (int64, bool) {
	s = strings.TrimSpace(s)
	digits := len(s) - len(strings.TrimLeft(s, "0123456789"))
	n, err := strconv.ParseInt(s[:digits], 10, 32)
	if err != nil {
		return 0, false
	}
	unit := map[string]time.Duration{"": time.Millisecond, "ms": time.Millisecond, "s": time.Second, "min": time.Minute, "h": time.Hour, "d": 24 * time.Hour}
	u, ok := unit[strings.TrimSpace(s[digits:])]
	return n * u.Milliseconds(), ok
}

// cutOptions reads the startup parameter "options": -c NAME=VALUE, -cNAME=VALUE
// and --NAME=VALUE, separated by white space, a backslash before what is meant
// as it is (PostgreSQL 18, 32.1.2). Other switches are refused.
func cutOptions(s string, into map[string]string) error {
	words := splitOptions(s)
	for i := 0; i < len(words); i++ {
		w, isSetting := words[i], true
		switch {
		case w == "-c" && i+1 < len(words):
			i++
			w = words[i]
		case strings.HasPrefix(w, "-c") && len(w) > 2:
			w = w[2:]
		case strings.HasPrefix(w, "--") && len(w) > 2:
			w = w[2:]
		default:
			isSetting = false
		}
		name, value, ok := strings.Cut(w, "=")
		if !isSetting || !ok {
			return &refusal{State: stateParameter, Message: "isle: option " + strconv.Quote(clip(words[i])) + " does not pass the gateway", Hint: "only settings do: -c NAME=VALUE"}
		}
		into[strings.ReplaceAll(strings.ToLower(name), "-", "_")] = value
	}
	return nil
}

func splitOptions(s string) []string {
	var words []string
	var word strings.Builder
	inside := false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' || c == '\v':
			if inside {
				words = append(words, word.String())
				word.Reset()
			}
			inside = false
		case c == '\\' && i+1 < len(s):
			i++
			word.WriteByte(s[i])
			inside = true
		default:
			word.WriteByte(c)
			inside = true
		}
	}
	if inside {
		words = append(words, word.String())
	}
	return words
}
