package main

import (
	"fmt"
	"strings"
	"time"
)

// mountWords are the options that say something. The last one wins.
var mountWords = map[string]func(*mountOptions){
	"ro": func(o *mountOptions) { o.readOnly = true }, "rw": func(o *mountOptions) { o.readOnly = false },
	"suid": func(o *mountOptions) { o.flags.Suid = true }, "nosuid": func(o *mountOptions) { o.flags.Suid = false },
	"dev": func(o *mountOptions) { o.flags.Dev = true }, "nodev": func(o *mountOptions) { o.flags.Dev = false },
	"exec": func(o *mountOptions) { o.flags.NoExec = false }, "noexec": func(o *mountOptions) { o.flags.NoExec = true },
	"atime": func(o *mountOptions) { o.flags.NoAtime = false }, "noatime": func(o *mountOptions) { o.flags.NoAtime = true },
	"diratime": func(o *mountOptions) { o.flags.NoDirAtime = false }, "nodiratime": func(o *mountOptions) { o.flags.NoDirAtime = true },
	"symfollow": func(o *mountOptions) { o.flags.NoSymFollow = false }, "nosymfollow": func(o *mountOptions) { o.flags.NoSymFollow = true },
	"create":      func(o *mountOptions) { o.create = true },
	"remount":     func(o *mountOptions) { o.remount = true },
	"allow_other": func(o *mountOptions) { o.allowOther = true },
}

// idleWords say what is so anyway, are for mount(8) alone, or come back in a
// remount as the kernel showed them.
var idleWords = map[string]bool{
	"defaults": true, "relatime": true, "async": true, "nomand": true, "loud": true, "silent": true,
	"auto": true, "noauto": true, "nofail": true, "_netdev": true, "comment": true,
	"user": true, "nouser": true, "users": true, "owner": true, "group": true,
	"default_permissions": true, "user_id": true, "group_id": true, "max_read": true,
}

// parse reads options as mount(8) writes them. Sloppy, it passes over those that
// are unknown.
func (o *mountOptions) parse(env *environment, list string, sloppy bool) error {
	for option := range strings.SplitSeq(list, ",") {
		word, value, valued := strings.Cut(option, "=")
		lower := strings.ToLower(word)
		switch set := mountWords[word]; {
		case option == "", idleWords[word], strings.HasPrefix(lower, "x-"):
		case set != nil && !valued:
			set(o)
		case word == "socket" && value != "":
			env.socket = value
		case word == "timeout":
			d, err := time.ParseDuration(value)
			if err != nil {
				return fmt.Errorf("mount option %q: want a time like 30s", option)
			}
			env.timeout = d
		case !sloppy:
			return fmt.Errorf("mount option %q is not known; see synapsefs mount --help", option)
		}
	}
	return nil
}
