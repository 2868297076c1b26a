"""What `tamis doctor` looks at: a function each, which says in a line what it found, or raises `BadInput`."""
