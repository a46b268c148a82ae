package server

import (
	"context"
	"io"
	"net"
	"time"

	"isle"
	"isle/internal/environment"
	"isle/internal/gateway"
	httpdoor "isle/internal/gateway/http"
	"isle/internal/gateway/postgres"
	"isle/internal/gateway/tcp"
	"isle/internal/policy"
)

// openGateway makes the gateway with every protocol it speaks.
func (r *rooms) openGateway() {
	// Without the key, of which doctor tells, hashes of masked values are others
	// after each start.
	maskKey, _ := r.key.Derive("masks")
	// Nor can egress be inspected, which is said where somebody tries.
	inspectionKey, _ := r.key.Derive("inspection")
	http := httpdoor.New(httpdoor.Config{MaskKey: maskKey})
	r.inspector = httpdoor.NewInspector(http, inspectionKey)
	r.postgres = postgres.New(postgres.Config{Slog: r.server.log, MaskKey: func() ([]byte, error) { return r.key.Derive("masks") }})
	r.gateway = gateway.New(gateway.Config{
		Closed: r.closed,
		Policy: r.policy, Sessions: r.sessions, Log: r.store, Secrets: r.secrets, Approvals: r.approvals,
		Protocols: map[string]gateway.Protocol{
			"tcp":      tcp.Protocol{},
			"postgres": r.postgres,
			"http":     http,
			"egress":   r.inspector,
		},
		Refused:   r.refusals.actor,
		Inside:    func(instance isle.ID, at time.Time) []isle.ID { return r.manager.Inside(instance, at) },
		Forward:   r.reachService,
		Listening: r.server.handover.listens,
		Slog:      r.server.log,
	})
}

// dialForBuilds connects build steps that have the recorded network.
func (r *rooms) dialForBuilds(ctx context.Context, host string, port int) (net.Conn, error) {
	return r.gateway.DialPublic(ctx, host, port, r.server.cfg.BuildNetworks)
}

// connect serves what came to a connection's door in an airlock: whose airlock
// it is says who the caller is.
func (r *rooms) connect(ctx context.Context, instance isle.ID, name string, _ int, conn net.Conn) error {
	c, err := r.callerInside(instance, name)
	if err != nil {
		conn.Close()
		return err
	}
	return r.gateway.Serve(ctx, c, name, conn)
}

// inspect serves what came to an inspected destination in an airlock.
func (r *rooms) inspect(ctx context.Context, instance isle.ID, to gateway.Egress, conn net.Conn) error {
	c, err := r.callerInside(instance, "")
	if err != nil {
		conn.Close()
		return err
	}
	return r.gateway.Inspect(ctx, c, to, conn)
}

// callerInside is the environment of an instance as who opens a connection; "": a
// destination of egress.
func (r *rooms) callerInside(instance isle.ID, connection string) (gateway.Caller, error) {
	e, ok := r.manager.ByInstance(instance)
	if !ok {
		return gateway.Caller{}, isle.Errorf(isle.NotFound, "there is no environment of instance %s", instance)
	}
	c := gateway.Caller{
		Actor: isle.Actor{Kind: isle.Workload, Name: e.Ref.Name + "@" + e.Ref.Stage},
		Place: policy.Place{Project: e.Project, Stage: e.Ref.Stage, Environment: e.Ref.Name},
		Ref:   e.Ref, Instance: instance, As: e.Spec.UsesAs[connection],
		Check: func() error {
			now, ok := r.manager.ByInstance(instance)
			switch {
			case !ok || now.Desired != environment.WantRunning:
				return isle.Errorf(isle.Unavailable, "environment %s is being torn down", e.Ref)
			case now.Project != e.Project:
				return isle.Errorf(isle.Unavailable, "environment %s is of another project now", e.Ref)
			}
			return nil
		},
		Over: func() <-chan struct{} { return r.manager.Changed(instance) },
	}
	c.Owner, c.Chain = r.answersFor(e.Owner)
	return c, nil
}

// answersFor is the person who answers for what somebody launched, and who is
// between them and it.
func (r *rooms) answersFor(who isle.Actor) (owner string, chain []string) {
	if who.Kind == isle.Machine {
		chain = []string{who.String()}
		if m, ok := r.machines.Machine(who.Name); ok {
			return m.Owner.String(), chain
		}
		return "", chain
	}
	return who.String(), nil
}

// reachService opens a port of an environment's service for a connection. It is
// the gateway that does so, for whoever the entry names.
func (r *rooms) reachService(ctx context.Context, c gateway.Caller, connection string, ref isle.Ref, service string, port int) (io.ReadWriteCloser, error) {
	return r.manager.Reach(ctx, isle.Actor{Kind: isle.System, Name: "gateway"}, ref, service, port, "connection "+connection+" for "+c.Actor.String())
}
