package core

import (
	"errors"
	"fmt"
)

// ErrConfig is found by errors.Is in the error of every constructor that did
// not accept its Config.
var ErrConfig = errors.New("invalid configuration")

// ConfigError is one problem of one field. A constructor reports all problems
// at once, joined; errors.As finds the first.
type ConfigError struct {
	Config  string // the type: "limit.TokenBucketConfig"
	Field   string // the field: "Rate"
	Value   any    // the value it had; nil where that is a secret or has no text
	Problem string // what is wrong: "must be above 0"
}

func (e *ConfigError) Error() string {
	if e.Value == nil {
		return fmt.Sprintf("%s.%s: %s", e.Config, e.Field, e.Problem)
	}
	return fmt.Sprintf("%s.%s: %v: %s", e.Config, e.Field, e.Value, e.Problem)
}

// Is makes errors.Is find ErrConfig.
func (e *ConfigError) Is(target error) bool { return target == ErrConfig }

// Problems collects what is wrong with a Config.
type Problems struct {
	config string
	errs   []error
}

// Check begins the check of a Config, named as its users write it:
// "limit.TokenBucketConfig".
func Check(config string) *Problems { return &Problems{config: config} }

// If adds a problem if bad is true. A secret's value is given as nil.
func (p *Problems) If(bad bool, field string, value any, problem string) {
	if bad {
		p.errs = append(p.errs, &ConfigError{p.config, field, value, problem})
	}
}

// Err is all problems joined, or nil.
func (p *Problems) Err() error { return errors.Join(p.errs...) }
