from altclip_train.cli import main

main()
