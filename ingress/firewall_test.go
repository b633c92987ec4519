package ingress

import (
	"strings"
	"testing"
)

func TestTheRuleGoesBeforeDockers(t *testing.T) {
	const (
		ours     = "-m connmark --mark 0x6d000000/0xff000000 -m comment --comment miniswarm -j ACCEPT"
		user     = "-j DOCKER-USER"
		stage    = "-j DOCKER-ISOLATION-STAGE-1"
		toDocker = "-o docker0 -j DOCKER"
		another  = "-s 192.0.2.0/24 -j DROP"
	)
	for _, tc := range []struct {
		name  string
		rules []string
		at    int
		found bool
	}{
		{"an empty chain", nil, 0, false},
		{"no Docker yet", []string{another}, 0, false},
		{"Docker alone", []string{user, stage, toDocker}, 1, false},
		{"what others have put first stays first", []string{another, user, stage}, 2, false},
		{"as it should be", []string{ours, user, stage}, 0, true},
		{"as it should be, behind another's", []string{another, ours, user, stage}, 0, true},
		{"a jump that was put in again may stand before it", []string{user, ours, stage}, 0, true},
		{"others may not", []string{user, stage, ours, toDocker}, 1, true},
		{"Docker 28", []string{user, "-j DOCKER-FORWARD", ours}, 1, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			list := "-P FORWARD DROP\n"
			for _, r := range tc.rules {
				list += "-A FORWARD " + r + "\n"
			}
			if at, found := placeInForward(list); at != tc.at || found != tc.found {
				t.Errorf("at %d, found %v; want %d, %v", at, found, tc.at, tc.found)
			}
		})
	}
	if rule := strings.Join(acceptRule(), " "); rule != ours {
		t.Errorf("the rule is %s", rule)
	}
}
