package fusefs

import (
	"time"

	"github.com/synapsefs/synapsefs/fusefs/kernel"
)

// Pause stops the revealer, so that what is merged stays pending.
func (m *Mounted) Pause() (resume func()) {
	m.revealer.gate.Lock()
	return m.revealer.gate.Unlock
}

// KillHelper ends the helper process; it is started again after a second.
func (m *Mounted) KillHelper() { m.fs.helpers.first().Close() }

// HelperRuns returns nil if the helper runs.
func (m *Mounted) HelperRuns() error {
	if m.fs.helpers.first().Gone() == nil {
		return kernel.ErrHelperGone
	}
	return nil
}

// Hurry makes the revealer give a call up after so long.
func (m *Mounted) Hurry(patience time.Duration) {
	defer m.Pause()()
	m.revealer.patience = patience
}

// Blocked counts the calls of helpers that are blocked.
func (m *Mounted) Blocked() (n int) {
	defer m.Pause()()
	for _, c := range m.revealer.callers {
		if c.blocked != nil {
			n++
		}
	}
	return n
}
