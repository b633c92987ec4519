package scheduler

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/miniswarm/miniswarm/cluster"
)

const (
	nodeLabelPrefix   = "node.labels."
	engineLabelPrefix = "engine.labels."
)

// Constraint is one placement constraint, such as node.labels.zone==a.
type Constraint struct {
	// Key is what is compared, as the user wrote it.
	Key string
	// Equal is true for == and false for !=.
	Equal bool
	// Value is what Key must or must not be. It is compared in full, letter case aside.
	Value string
}

func (c Constraint) String() string {
	op := "!="
	if c.Equal {
		op = "=="
	}
	return c.Key + op + c.Value
}

// ParseConstraints parses placement constraints. Its errors are Docker Swarm's, word for word, fit to be returned to
// the user as they are.
func ParseConstraints(exprs []string) ([]Constraint, error) {
	cs := make([]Constraint, 0, len(exprs))
	for _, e := range exprs {
		// Swarm looks for == in the whole expression before it looks for !=.
		key, value, equal := strings.Cut(e, "==")
		if !equal {
			var found bool
			if key, value, found = strings.Cut(e, "!="); !found {
				return nil, errors.New("constraint expected one operator from ==, !=")
			}
		}
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if !validConstraintKey(key) {
			return nil, fmt.Errorf("key '%s' is invalid", key)
		}
		if !validConstraintValue(value) {
			return nil, fmt.Errorf("value '%s' is invalid", value)
		}
		cs = append(cs, Constraint{Key: key, Equal: equal, Value: value})
	}
	return cs, nil
}

func asciiLetter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }
func asciiDigit(c byte) bool  { return c >= '0' && c <= '9' }

// validConstraintKey wants at least two characters: a letter or underscore, then letters, digits, - _ or dots.
func validConstraintKey(s string) bool {
	if len(s) < 2 || !asciiLetter(s[0]) && s[0] != '_' {
		return false
	}
	for i := 1; i < len(s); i++ {
		if !asciiLetter(s[i]) && !asciiDigit(s[i]) && !strings.ContainsRune("-_.", rune(s[i])) {
			return false
		}
	}
	return true
}

func validConstraintValue(s string) bool {
	for i := range len(s) {
		if !asciiLetter(s[i]) && !asciiDigit(s[i]) && !strings.ContainsRune(":-_ \t\n\f\r.*()?+[]\\^$|/", rune(s[i])) {
			return false
		}
	}
	return s != ""
}

// Matches says whether the node meets the constraint. A key that is not known and a malformed address never match,
// whatever the operator; a label that is missing is an empty string.
func (c Constraint) Matches(n *cluster.Node) bool {
	if strings.EqualFold(c.Key, "node.ip") {
		return c.matchesIP(n.Status.Addr)
	}
	have, known := attribute(c.Key, n)
	return known && strings.EqualFold(c.Value, have) == c.Equal
}

// matchesIP compares with an address or a network in CIDR form.
func (c Constraint) matchesIP(text string) bool {
	addr, _ := netip.ParseAddr(text) // the zero address equals nothing and is in no network
	if want, err := netip.ParseAddr(c.Value); err == nil {
		return (want.Unmap() == addr.Unmap()) == c.Equal
	}
	subnet, err := netip.ParsePrefix(c.Value)
	return err == nil && subnet.Contains(addr.Unmap()) == c.Equal
}

// attribute gives the node's value for a constraint key other than node.ip.
func attribute(key string, n *cluster.Node) (value string, known bool) {
	switch {
	case strings.EqualFold(key, "node.id"):
		return n.ID, true
	case strings.EqualFold(key, "node.hostname"):
		return n.Description.Hostname, true
	case strings.EqualFold(key, "node.role"):
		return string(n.Role), true
	case strings.EqualFold(key, "node.platform.os"):
		return n.Description.Platform.OS, true
	case strings.EqualFold(key, "node.platform.arch"):
		return n.Description.Platform.Architecture, true
	}
	return label(key, n)
}

// label gives the node's value for node.labels.X or engine.labels.X. The prefix ignores letter case, X does not.
func label(key string, n *cluster.Node) (value string, known bool) {
	switch {
	case hasLabelPrefix(key, nodeLabelPrefix):
		return n.Spec.Labels[key[len(nodeLabelPrefix):]], true
	case hasLabelPrefix(key, engineLabelPrefix):
		return n.Description.Engine.Labels[key[len(engineLabelPrefix):]], true
	}
	return "", false
}

func hasLabelPrefix(key, prefix string) bool {
	return len(key) > len(prefix) && strings.EqualFold(key[:len(prefix)], prefix)
}

// known says whether the key is one that nodes have a value for. One that is not matches no node.
func (c Constraint) known() bool {
	_, known := attribute(c.Key, &cluster.Node{})
	return known || strings.EqualFold(c.Key, "node.ip")
}

// Hopeless says of those constraints that no node can ever match why that is so. A list that does not parse has none, as in
// MeetsConstraints.
func Hopeless(exprs []string) []string {
	cs, err := ParseConstraints(exprs)
	if err != nil {
		return nil
	}
	var why []string
	for _, c := range cs {
		if !c.known() {
			why = append(why, fmt.Sprintf("no node can ever match the constraint %s: %s", c, c.explain(&cluster.Node{})))
		}
	}
	return why
}

// explain says in words why the node does not meet the constraint.
func (c Constraint) explain(n *cluster.Node) string {
	have, _ := attribute(c.Key, n)
	if strings.EqualFold(c.Key, "node.ip") {
		have = n.Status.Addr
	}
	switch {
	case !c.known():
		return fmt.Sprintf("%s is not something a constraint can ask for", c.Key)
	case c.Equal:
		return fmt.Sprintf("%s is %q, must be %q", c.Key, have, c.Value)
	}
	return fmt.Sprintf("%s is %q, must not be %q", c.Key, have, c.Value)
}

// MeetsConstraints says whether the node meets all constraints. A list that does not parse holds nobody back, as in
// Swarm: the API refuses such lists, so only one from elsewhere can come here.
func (a *Accounts) MeetsConstraints(constraints []string, n *cluster.Node) bool {
	if len(constraints) == 0 {
		return true
	}
	if !slices.Equal(a.lastConstraints, constraints) {
		parsed, err := ParseConstraints(constraints)
		if err != nil {
			parsed = nil
		}
		// Callers ask about one list and many nodes.
		a.lastConstraints, a.lastParsed = slices.Clone(constraints), parsed
	}
	return meetsAll(a.lastParsed, n)
}

func meetsAll(cs []Constraint, n *cluster.Node) bool {
	for _, c := range cs {
		if !c.Matches(n) {
			return false
		}
	}
	return true
}
