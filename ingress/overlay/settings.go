package overlay

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// settings changes values below /proc/sys and remembers what they were.
type settings struct {
	file   string // where former values are kept; empty if nowhere
	former map[string]string
}

func newSettings(stateDir string) *settings {
	s := &settings{former: map[string]string{}}
	if stateDir == "" {
		return s
	}
	s.file = filepath.Join(stateDir, "sysctl-before.json")
	// A damaged file costs the restoring of a few settings, not the data plane.
	if b, err := os.ReadFile(s.file); err == nil && json.Unmarshal(b, &s.former) != nil {
		s.former = map[string]string{}
	}
	return s
}

func path(key string) string { return filepath.Join("/proc/sys", filepath.FromSlash(key)) }

func current(key string) (string, error) {
	b, err := os.ReadFile(path(key))
	return strings.TrimSpace(string(b)), err
}

// value is what a setting has to be, given what it is. A device filters by
// reverse path as the higher of its own value and that of "all": 0 not at all, 1
// strictly, 2 loosely. Strictly is what must not be.
func value(want plan.Sysctl, have string) string {
	if !strings.HasSuffix(want.Key, "/rp_filter") {
		return want.Value
	}
	all, err := current("net/ipv4/conf/all/rp_filter")
	switch {
	case err != nil:
		return want.Value
	case want.Value == "0" && all != "0":
		return "2"
	case want.Value == "2" && max(all, have) != "1":
		return have
	}
	return want.Value
}

func (s *settings) fits(want plan.Sysctl) bool {
	have, err := current(want.Key)
	return err == nil && have == value(want, have)
}

func (s *settings) set(want plan.Sysctl) error {
	have, err := current(want.Key)
	if err != nil {
		return fmt.Errorf("kernel setting %s: %w", want.Key, err)
	}
	v := value(want, have)
	if have == v {
		return nil
	}
	if _, ok := s.former[want.Key]; !ok && restorable(want.Key) {
		s.former[want.Key] = have
		if err := s.save(); err != nil {
			return fmt.Errorf("kernel setting %s: remember its value: %w", want.Key, err)
		}
	}
	if err := os.WriteFile(path(want.Key), []byte(v), 0o644); err != nil {
		return fmt.Errorf("kernel setting %s: %w", want.Key, err)
	}
	return nil
}

// restorable settings are those that do not vanish with a bridge of ours.
// Forwarding stays on: Docker needs it as much as we do.
func restorable(key string) bool {
	return !strings.Contains(key, "/"+bridgePrefix) && key != "net/ipv4/ip_forward"
}

func (s *settings) restore(key string) error {
	before, ok := s.former[key]
	if !ok {
		return nil
	}
	if err := os.WriteFile(path(key), []byte(before), 0o644); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("kernel setting %s back to %s: %w", key, before, err)
	}
	delete(s.former, key)
	return s.save()
}

// restoreAll also restores what a former process changed.
func (s *settings) restoreAll() error {
	var errs []error
	for key := range s.former {
		errs = append(errs, s.restore(key))
	}
	return errors.Join(errs...)
}

func (s *settings) save() error {
	if s.file == "" {
		return nil
	}
	if len(s.former) == 0 {
		if err := os.Remove(s.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	b, err := json.Marshal(s.former)
	if err != nil {
		return err
	}
	// Written aside and renamed: a crash leaves the old or the new content.
	aside := s.file + ".new"
	if err := os.WriteFile(aside, b, 0o600); err != nil {
		return err
	}
	return os.Rename(aside, s.file)
}
