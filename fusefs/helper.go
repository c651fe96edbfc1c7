package fusefs

import "time"

// detached reports whether a helper cannot find the mount any more, and few can
// watch it.
func (m *Mounted) detached() bool {
	mounted, err := m.conn.Mounted()
	return err == nil && !mounted
}

func (m *Mounted) startHelper(exec []string) bool {
	err := m.fs.helper.Start(m.conn, exec[0], exec[1:]...)
	if err != nil {
		m.fs.log.Error("changes of other nodes will be shown without inotify events", "err", err)
	} else if m.fs.helper.NeedsPaths() {
		m.fs.log.Info("reveal helper works without privileges")
	}
	return err == nil
}

// helperRestart is how long to wait before a dead helper is started again.
const helperRestart = time.Second

// keepHelper starts the helper again when it dies before the mount ends.
func (m *Mounted) keepHelper(exec []string) {
	for {
		if gone := m.fs.helper.Gone(); gone != nil {
			select {
			case <-m.revealer.ctx.Done():
				return
			case <-gone:
			}
		}
		t := time.NewTimer(helperRestart)
		select {
		case <-m.revealer.ctx.Done():
			t.Stop()
			return
		case <-t.C:
			if m.detached() {
				return
			}
			m.startHelper(exec)
		}
	}
}
