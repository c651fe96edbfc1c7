package store

import (
	"sync"
	"time"
)

// A Scheduler runs what a store does in the background: on goroutines and the
// machine's timers, or, in a simulator, when the simulator wants.
type Scheduler interface {
	// Loop calls turn at once, and again whenever the time that it returned is
	// over or wake is called, which does not block. stop returns when no turn
	// runs and none will.
	Loop(turn func() time.Duration) (wake, stop func())
	// After calls fn once, when the time is over.
	After(d time.Duration, fn func()) Timer
}

// A Timer is a call that [Scheduler.After] is to make. Stop reports whether it
// has kept it from being made.
type Timer interface{ Stop() bool }

// later is a turn that is put off for a time at the beginning: the daemon has
// other things to do.
func later(d time.Duration, turn func() time.Duration) func() time.Duration {
	begun := false
	return func() time.Duration {
		if !begun {
			begun = true
			return d
		}
		return turn()
	}
}

// machine is the Scheduler of a real machine.
type machine struct{}

func (machine) Loop(turn func() time.Duration) (wake, stop func()) {
	kick, end := make(chan struct{}, 1), make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		timer := time.NewTimer(time.Hour)
		defer timer.Stop()
		for {
			timer.Reset(turn())
			select {
			case <-end:
				return
			case <-timer.C:
			case <-kick:
			}
		}
	})
	wake = func() {
		select {
		case kick <- struct{}{}:
		default:
		}
	}
	return wake, func() { close(end); done.Wait() }
}

func (machine) After(d time.Duration, fn func()) Timer { return time.AfterFunc(d, fn) }
