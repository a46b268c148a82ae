package audit

import (
	"strings"
	"time"

	"isle"
)

// A Filter selects entries. What is empty selects all.
type Filter struct {
	Actor       string // kind:name, or the name of one of any kind
	Action      string // noun:verb, or a noun for all of its verbs
	Environment string // NAME[@STAGE]
	Instance    isle.ID
	Resource    string // kind:name[@stage], or a kind for all of them
	Decision    isle.Decision
	Since       time.Time
	Until       time.Time // and not at it
}

// Match says whether the filter selects e.
func (f Filter) Match(e Entry) bool {
	environment := f.Environment
	if environment != "" && !strings.Contains(environment, "@") {
		environment += "@" + isle.DefaultStage
	}
	resource := e.Resource.String()
	return (f.Actor == "" || f.Actor == e.Actor.String() || f.Actor == e.Actor.Name) &&
		(f.Action == "" || f.Action == string(e.Action) || strings.HasPrefix(string(e.Action), f.Action+":")) &&
		(environment == "" || environment == e.Environment) &&
		(f.Instance == "" || f.Instance == e.Instance) &&
		(f.Resource == "" || f.Resource == resource || f.Resource == e.Resource.Kind || strings.HasPrefix(resource, f.Resource+"@")) &&
		(f.Decision == "" || f.Decision == e.Decision) &&
		!e.Time.Before(f.Since) && (f.Until.IsZero() || e.Time.Before(f.Until))
}
