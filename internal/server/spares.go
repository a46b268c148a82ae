package server

import (
	"fmt"
	"strconv"
	"strings"

	"isle"
	"isle/internal/api"
	"isle/internal/environment"
	"isle/internal/spec"
)

// ParseSpares reads how many instances are to be kept ready by class of
// isolation: "container=2,gvisor=1". A class that is not named has none.
func ParseSpares(s string) (map[string]int, error) {
	out := map[string]int{}
	for part := range strings.SplitSeq(s, ",") {
		class, number, _ := strings.Cut(strings.TrimSpace(part), "=")
		if class != spec.Container && class != spec.Gvisor {
			return nil, isle.Errorf(isle.Invalid, "%q is no isolation: want %s=N or %s=N", class, spec.Container, spec.Gvisor)
		}
		n, err := strconv.Atoi(number)
		if err != nil || n < 0 || n > environment.MaxSpares {
			return nil, isle.Errorf(isle.Invalid, "%s=%s: want a number from 0 to %d", class, number, environment.MaxSpares)
		}
		if _, twice := out[class]; twice {
			return nil, isle.Errorf(isle.Invalid, "%s is said twice", class)
		}
		out[class] = n
	}
	return out, nil
}

// checkPrepared says what is ready for the next launches.
func (r *rooms) checkPrepared() api.Check {
	c := api.Check{Name: "prepared", State: api.CheckOK}
	var said []string
	for _, p := range r.manager.Prepared() {
		said = append(said, fmt.Sprintf("%s %d of %d", p.Class, p.Ready, p.Want))
		if p.Trouble != nil {
			flat := api.Flatten(p.Trouble)
			c.State, c.Remedy = api.CheckWarning, flat.Hint
			said = append(said, flat.Message)
		}
	}
	if len(said) == 0 {
		said = []string{"nothing is kept ready for launches; isle server --prepare does"}
	}
	c.Message = strings.Join(said, "; ")
	return c
}
