package node

import (
	"log/slog"
	"time"
)

// steps tells how long each step of a hand-over takes: programs wait meanwhile.
type steps struct {
	log   *slog.Logger
	since time.Time
}

func beginSteps(log *slog.Logger) *steps { return &steps{log, time.Now()} }

// done says that a step was, and that the next begins.
func (s *steps) done(step string) {
	now := time.Now()
	s.log.Debug("hand-over", "step", step, "took", now.Sub(s.since))
	s.since = now
}
