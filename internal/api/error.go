package api

import (
	"context"
	"errors"
	"strings"

	"connectrpc.com/connect"

	"isle"
	islev1 "isle/internal/api/isle/v1"
)

// connectCode is the only place where a code becomes a status.
func connectCode(c isle.Code) connect.Code {
	switch c {
	case isle.Invalid:
		return connect.CodeInvalidArgument
	case isle.NotFound:
		return connect.CodeNotFound
	case isle.Conflict:
		return connect.CodeAlreadyExists
	case isle.Refused:
		return connect.CodePermissionDenied
	case isle.Unavailable:
		return connect.CodeUnavailable
	case isle.Exhausted:
		return connect.CodeResourceExhausted
	case isle.Failed, isle.Untrusted, isle.Held:
		return connect.CodeFailedPrecondition
	default:
		return connect.CodeInternal
	}
}

// isleCode reads a status that came without a detail: from the transport, or
// from the Connect library itself.
func isleCode(c connect.Code) isle.Code {
	switch c {
	case connect.CodeInvalidArgument, connect.CodeOutOfRange, connect.CodeUnimplemented:
		return isle.Invalid
	case connect.CodeNotFound:
		return isle.NotFound
	case connect.CodeAlreadyExists, connect.CodeAborted:
		return isle.Conflict
	case connect.CodePermissionDenied, connect.CodeUnauthenticated:
		return isle.Refused
	case connect.CodeUnavailable, connect.CodeDeadlineExceeded, connect.CodeCanceled:
		return isle.Unavailable
	case connect.CodeResourceExhausted:
		return isle.Exhausted
	case connect.CodeFailedPrecondition:
		return isle.Failed
	default:
		return isle.Internal
	}
}

// Flatten returns err as one Error with no cause: the message holds what every
// wrap said, and the hint is the outermost one. It returns nil for nil.
func Flatten(err error) *isle.Error {
	if err == nil {
		return nil
	}
	out := &isle.Error{Code: isle.CodeOf(err), Message: err.Error()}
	var first *isle.Error
	if !errors.As(err, &first) {
		switch {
		case errors.Is(err, context.Canceled):
			out.Code = isle.Unavailable
		case errors.Is(err, context.DeadlineExceeded):
			out.Code = isle.Unavailable
			out.Hint = "it took too long; try again, and see `isle doctor`"
		}
		return out
	}
	for e := err; e != nil; e = errors.Unwrap(e) {
		ie, ok := e.(*isle.Error)
		if !ok || ie.Hint == "" {
			continue
		}
		if out.Hint == "" {
			out.Hint = ie.Hint
		}
		out.Message = strings.Replace(out.Message, " ("+ie.Hint+")", "", 1)
	}
	return out
}

// toWire makes the error that is sent. An error that is on the wire's side
// already (from Connect itself) passes unchanged.
func toWire(err error) error {
	if err == nil {
		return nil
	}
	var ce *connect.Error
	if errors.As(err, &ce) {
		return err
	}
	flat := Flatten(err)
	code := connectCode(flat.Code)
	if errors.Is(err, context.Canceled) {
		code = connect.CodeCanceled
	}
	ce = connect.NewError(code, errors.New(flat.Message))
	detail, derr := connect.NewErrorDetail(&islev1.ErrorDetail{Code: string(flat.Code), Message: flat.Message, Hint: flat.Hint})
	if derr == nil {
		ce.AddDetail(detail)
	}
	return ce
}

// fromWire gives back what toWire was given, as an *isle.Error.
func fromWire(err error) error {
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return err
	}
	for _, d := range ce.Details() {
		v, derr := d.Value()
		if derr != nil {
			continue
		}
		if e, ok := v.(*islev1.ErrorDetail); ok {
			return &isle.Error{Code: isle.Code(e.Code), Message: e.Message, Hint: e.Hint}
		}
	}
	if errors.Is(err, context.Canceled) {
		return context.Canceled
	}
	return &isle.Error{Code: isleCode(ce.Code()), Message: ce.Message()}
}
